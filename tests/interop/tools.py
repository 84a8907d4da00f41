"""Kafka's own command-line tools: each is used as one uses it by hand, against one node."""

import json
import os
import subprocess
import tempfile
import time

PATIENCE = 60
TOPICS = "TopicCommand"
PRODUCER = "ConsoleProducer"
CONSUMER = "consumer.ConsoleConsumer"
GROUPS = "consumer.group.ConsumerGroupCommand"


def name(kind):
    """A name that nothing else has."""
    return f"{kind}-{os.getpid()}-{time.time_ns()}"


def require(condition, what):
    if not condition:
        raise AssertionError(" ".join(str(what).split())[-200:])


class Kafka:
    """Starts tools from a directory of jars."""

    def __init__(self, jars, node):
        self.jars, self.bootstrap = jars, node.bootstrap

    def __call__(self, tool, *arguments, lines=""):
        """What a tool prints, where it ends well."""
        main = tool if tool.startswith("kafka.") else f"org.apache.kafka.tools.{tool}"
        java = ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{self.jars}/*", main]
        command = [*java, *arguments, "--bootstrap-server", self.bootstrap]
        done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=PATIENCE)
        require(done.returncode == 0, f"{tool} ended with {done.returncode}: {done.stderr[-300:]} {done.stdout[-300:]}")
        return done.stdout

    def new_topic(self, kind, partitions=1):
        topic = name(kind)
        self(TOPICS, "--create", "--topic", topic, "--partitions", str(partitions))
        return topic

    def filled(self, kind, count=20):
        topic = self.new_topic(kind)
        self(PRODUCER, "--topic", topic, lines="".join(f"line {i}\n" for i in range(count)))
        return topic

    def read(self, topic, count, *options):
        return self(CONSUMER, "--topic", topic, "--from-beginning", "--max-messages", str(count), *options).splitlines()


def in_file(content):
    """A file with it as JSON."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump(content, file)
    return file.name


def topics(kafka):
    topic = kafka.new_topic("topics", 3)
    require(topic in kafka(TOPICS, "--list").split(), "it is not listed")
    kafka(TOPICS, "--alter", "--topic", topic, "--partitions", "5")
    described = kafka(TOPICS, "--describe", "--topic", topic)
    require("PartitionCount: 5" in described and described.count("Leader: 1") == 5, described)
    kafka(TOPICS, "--delete", "--topic", topic)
    require(topic not in kafka(TOPICS, "--list").split(), "it is still there")


def configs(kafka):
    where = ["--entity-type", "topics", "--entity-name", kafka.new_topic("configs")]
    change = ["--alter", "--add-config", "retention.ms=70000,max.message.bytes=2000000"]
    kafka("kafka.admin.ConfigCommand", *where, *change)
    described = kafka("kafka.admin.ConfigCommand", *where, "--describe")
    require("retention.ms=70000" in described and "max.message.bytes=2000000" in described, described)
    kafka("kafka.admin.ConfigCommand", *where, "--alter", "--delete-config", "retention.ms")
    described = kafka("kafka.admin.ConfigCommand", *where, "--describe")
    require("retention.ms" not in described, described)
    broker = kafka("kafka.admin.ConfigCommand", "--entity-type", "brokers", "--entity-name", "1", "--describe", "--all")
    require(f"advertised.listeners=PLAINTEXT://{kafka.bootstrap}" in broker, broker)


def console_producer(kafka):
    topic = kafka.new_topic("console")
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"]:
        kafka(PRODUCER, "--topic", topic, "--compression-codec", codec, lines=f"{codec} one\n{codec} two\n")
    wanted = [f"{codec} {which}" for codec in ["none", "gzip", "snappy", "lz4", "zstd"] for which in ["one", "two"]]
    require(kafka.read(topic, 10) == wanted, "other records were read")


def console_consumer(kafka):
    topic = kafka.new_topic("console")
    parse = ["--reader-property", "parse.key=true", "--reader-property", "parse.headers=true"]
    kafka(PRODUCER, "--topic", topic, *parse, lines="h:1,h:2\tk\tv\n" * 10)
    shown = ["--formatter-property", "print.key=true", "--formatter-property", "print.headers=true"]
    require(kafka.read(topic, 10, *shown) == ["h:1,h:2\tk\tv"] * 10, "other records were read")
    group = ["--group", name("g")]
    require(len(kafka.read(topic, 4, *group)) == 4, "the group read nothing")
    require(len(kafka.read(topic, 6, *group)) == 6, "the group does not go on where it stopped")


def consumer_groups(kafka):
    topic, group = kafka.filled("groups"), name("g")
    kafka.read(topic, 20, "--group", group)
    require(group in kafka(GROUPS, "--list").split(), "it is not listed")
    described = kafka(GROUPS, "--describe", "--group", group)
    require(topic in described and " 20 " in described, described)
    kafka(GROUPS, "--describe", "--group", group, "--state")
    kafka(GROUPS, "--describe", "--group", group, "--members")
    reset = ["--reset-offsets", "--group", group, "--topic", topic, "--to-offset", "5", "--execute"]
    kafka(GROUPS, *reset)
    require(kafka.read(topic, 15, "--group", group)[0] == "line 5", "its offset was not reset")
    kafka(GROUPS, "--delete-offsets", "--group", group, "--topic", topic)
    kafka(GROUPS, "--delete", "--group", group)
    require(group not in kafka(GROUPS, "--list").split(), "it is still there")


def groups(kafka):
    topic, group = kafka.filled("groups"), name("g")
    kafka.read(topic, 20, "--group", group)
    require(group in kafka("GroupsCommand", "--list"), "it is not listed")


def get_offsets(kafka):
    topic = kafka.filled("offsets")
    for time_or_word, wanted in [("latest", 20), ("earliest", 0), ("max-timestamp", None)]:
        shown = kafka("GetOffsetShell", "--topic", topic, "--time", time_or_word)
        require(shown.startswith(f"{topic}:0:") and (wanted is None or shown.strip().endswith(f":{wanted}")), shown)


def verifiable_producer(kafka):
    topic = kafka.new_topic("verifiable")
    shown = kafka("VerifiableProducer", "--topic", topic, "--max-messages", "500", "--acks", "-1")
    require('"sent":500,"acked":500' in shown.replace(" ", ""), shown)


def verifiable_consumer(kafka):
    topic = kafka.filled("verifiable", 300)
    group = ["--group-id", name("g"), "--reset-policy", "earliest"]
    shown = kafka("VerifiableConsumer", "--topic", topic, *group, "--max-messages", "300")
    events = [json.loads(line) for line in shown.splitlines()]
    require(sum(event.get("count", 0) for event in events if event["name"] == "records_consumed") == 300, shown)
    committed = [event for event in events if event["name"] == "offsets_committed"]
    require(committed and all(event["success"] for event in committed), shown)


def producer_performance(kafka):
    topic = kafka.new_topic("perf", 3)
    size = ["--num-records", "5000", "--record-size", "200", "--throughput", "-1"]
    shown = kafka("ProducerPerformance", "--topic", topic, *size)
    require("5000 records sent" in shown, shown)


def consumer_performance(kafka):
    topic = kafka.filled("perf", 5000)
    shown = kafka("ConsumerPerformance", "--topic", topic, "--num-records", "5000")
    require(", 5000, " in shown, shown)


def end_to_end_latency(kafka):
    topic = kafka.new_topic("latency")
    sizes = ["--num-records", "200", "--producer-acks", "all", "--record-size", "100"]
    shown = kafka("EndToEndLatency", "--topic", topic, *sizes)
    require("Avg latency" in shown, shown)


def leader_election(kafka):
    topic = kafka.new_topic("election", 3)
    where = in_file({"partitions": [{"topic": topic, "partition": number} for number in range(3)]})
    kafka("LeaderElectionCommand", "--election-type", "preferred", "--path-to-json-file", where)


def reassign_partitions(kafka):
    tool = "reassign.ReassignPartitionsCommand"
    topic = kafka.new_topic("reassign", 2)
    topics_file = in_file({"version": 1, "topics": [{"topic": topic}]})
    shown = kafka(tool, "--generate", "--topics-to-move-json-file", topics_file, "--broker-list", "1")
    plan = in_file(json.loads(shown.strip().splitlines()[-1]))
    kafka(tool, "--execute", "--reassignment-json-file", plan)
    shown = kafka(tool, "--verify", "--reassignment-json-file", plan)
    require(shown.count("is completed") == 2, shown)
    kafka(tool, "--list")


def delete_records(kafka):
    topic = kafka.filled("delete")
    offsets = in_file({"version": 1, "partitions": [{"topic": topic, "partition": 0, "offset": 8}]})
    shown = kafka("DeleteRecordsCommand", "--offset-json-file", offsets)
    require("low_watermark: 8" in shown, shown)
    require(kafka.read(topic, 1) == ["line 8"], "the first record is another")


def log_dirs(kafka):
    topic = kafka.filled("dirs")
    shown = kafka("LogDirsCommand", "--describe", "--topic-list", topic)
    directories = json.loads(shown.strip().splitlines()[-1])["brokers"][0]["logDirs"]
    require(directories[0]["partitions"][0]["size"] > 0, shown)


def broker_api_versions(kafka):
    shown = kafka("BrokerApiVersionsCommand")
    require("Produce(0)" in shown and "Fetch(1)" in shown, shown)


def cluster_id(kafka):
    shown = kafka("ClusterTool", "cluster-id")
    require("Cluster ID: " in shown, shown)


TOOLS = {
    "kafka-topics": ("create, list, more partitions, describe, delete", topics),
    "kafka-configs": ("alter, describe and unset a topic's settings; describe a broker's", configs),
    "kafka-console-producer": ("every codec", console_producer),
    "kafka-console-consumer": ("keys and headers; by group, going on where it stopped", console_consumer),
    "kafka-consumer-groups": ("list, describe, reset offsets, delete offsets, delete", consumer_groups),
    "kafka-groups": ("list", groups),
    "kafka-get-offsets": ("earliest, latest, of the newest time", get_offsets),
    "kafka-verifiable-producer": ("500 records, all acknowledged", verifiable_producer),
    "kafka-verifiable-consumer": ("300 records, read and committed", verifiable_consumer),
    "kafka-producer-perf-test": ("5,000 records", producer_performance),
    "kafka-consumer-perf-test": ("5,000 records", consumer_performance),
    "kafka-e2e-latency": ("200 records", end_to_end_latency),
    "kafka-leader-election": ("preferred leaders", leader_election),
    "kafka-reassign-partitions": ("generate, execute, verify, list", reassign_partitions),
    "kafka-delete-records": ("up to an offset", delete_records),
    "kafka-log-dirs": ("describe", log_dirs),
    "kafka-broker-api-versions": ("list", broker_api_versions),
    "kafka-cluster": ("cluster-id", cluster_id),
}


def run(jars, node):
    """What came of each tool."""
    kafka, results = Kafka(jars, node), {}
    for tool, (_, use) in TOOLS.items():
        try:
            use(kafka)
            results[tool] = "yes"
        except (AssertionError, subprocess.SubprocessError, ValueError, LookupError) as error:
            results[tool] = "no: " + " ".join(str(error).split())[-200:]
    return results


def card(version, results):
    """The results as a table: a line for each tool."""
    rows = [f"| {tool} | {TOOLS[tool][0]} | {result} |" for tool, result in results.items()]
    return "\n".join([f"| tool of Kafka {version} | what was done | works |", "|---|---|---|", *rows]) + "\n"
