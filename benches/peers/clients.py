"""Foreign clients' own load generators. Each answers with what it says of itself."""

import re
import subprocess

from tools import jars, rdkafka_performance, sh

PATIENCE = 300
# The smallest JVM for what is not measured.
BRIEF = ["-XX:TieredStopAtLevel=1", "-Xshare:auto"]


def numbers(text, pattern):
    """The numbers in the last line that a pattern finds."""
    found = re.findall(pattern, text)
    if not found:
        raise SystemExit(f"nothing like {pattern} in:\n{text[-4000:]}")
    last = found[-1]
    return [float(number) for number in ([last] if isinstance(last, str) else last)]


class Java:
    """Kafka's own tools."""

    name = "java"

    def __init__(self, cache):
        self.jars = jars(cache)

    def tool(self, name, broker, *arguments, jvm=()):
        command = ["java", *jvm, "-cp", self.jars, f"org.apache.kafka.tools.{name}"]
        return sh(*command, "--bootstrap-server", broker.bootstrap, *arguments, timeout=PATIENCE)

    def create(self, broker, topic, partitions, settings):
        settings = [part for setting in settings for part in ("--config", setting)]
        wanted = ["--topic", topic, "--partitions", str(partitions)]
        self.tool("TopicCommand", broker, "--create", *wanted, *settings, jvm=BRIEF)

    def delete(self, broker, topic):
        self.tool("TopicCommand", broker, "--delete", "--topic", topic, jvm=BRIEF)

    def produce(self, broker, topic, records, size):
        """Records a second."""
        return self.paced(broker, topic, records, size, -1, records // 5)[0]

    def latency(self, broker, topic, records, size, rate):
        """The 99th percentile of the latencies of the second half of the records, in ms, at a rate."""
        return self.paced(broker, topic, records, size, rate, records // 2)[1]

    def paced(self, broker, topic, records, size, rate, warm_up):
        """Records a second and the 99th percentile of their latency, both without the first ones."""
        amount = ["--num-records", str(records), "--record-size", str(size), "--warmup-records", str(warm_up)]
        how = ["--throughput", str(rate), "--command-property", "acks=all"]
        said = self.tool("ProducerPerformance", broker, "--topic", topic, *amount, *how)
        return numbers(said, r"([\d.]+) records/sec .*?([\d.]+) ms 99th")

    def consume(self, broker, topic, records):
        """Records a second from the first fetch on."""
        amount = ["--num-records", str(records), "--hide-header"]
        said = self.tool("ConsumerPerformance", broker, "--topic", topic, *amount)
        return numbers(said, r"\d, ([\d.]+)\s*$")[0]


class Librdkafka:
    """librdkafka's own performance tool."""

    name = "librdkafka"
    # With its default queue it pauses for a second whenever a broker is faster than it is, and that would be measured.
    READING = ["auto.offset.reset=earliest", "queued.min.messages=10000000", "queued.max.messages.kbytes=2000000"]

    def __init__(self, cache):
        self.binary = rdkafka_performance(cache)

    def produce(self, broker, topic, records, size):
        """Records a second."""
        what = ["-P", "-t", topic, "-s", str(size), "-c", str(records), "-a", "-1"]
        # Its exit status takes events of its own for records.
        done = subprocess.run(
            [self.binary, "-b", broker.bootstrap, *what],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
        delivered, rate = numbers(done.stdout, r"(\d+) delivered .*?(\d+) msgs/s")
        if delivered != records:
            raise SystemExit(f"{delivered:.0f} of {records} records were acknowledged:\n{done.stdout[-4000:]}")
        return rate

    def consume(self, broker, topic, records):
        """Records a second."""
        what = ["-G", f"group-{topic}", "-t", topic, "-c", str(records)]
        settings = [part for setting in self.READING for part in ("-X", setting)]
        said = sh(self.binary, "-b", broker.bootstrap, *what, *settings, timeout=PATIENCE)
        return numbers(said, r"(\d+) msgs/s")[0]
