"""kcat, of the machine: the librdkafka of its distribution. It has no admin: topics are made by `quipu topic`."""

import collections
import subprocess
import threading
import time

from at_work import at_work
from both import check_grpc
from features import BOOTSTRAP, CODECS, LARGE, check, require, same, topic
from groups import check_groups, quipu


def kcat(*arguments, lines=""):
    command = ["kcat", "-b", BOOTSTRAP, *arguments]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=60)
    require(done.returncode == 0, done.stderr[-150:])
    return done.stdout


def new_topic(name, partitions=1):
    name = topic(name)
    quipu("topic", "create", name, "--partitions", str(partitions))
    return name


def produce(name, lines, *options):
    kcat("-P", "-t", name, *options, lines="".join(f"{line}\n" for line in lines))


def read(name, *options, form="%s\n"):
    return kcat("-C", "-t", name, "-e", "-q", "-f", form, *options).splitlines()


def create_and_list():
    name = new_topic("list", 3)
    require(f'topic "{name}" with 3 partitions' in kcat("-L"), "the topic is not listed")


def auto_create():
    name = topic("auto")
    produce(name, ["a"])
    same(read(name), ["a"])


def round_trip(*options):
    def run():
        name = new_topic("round")
        values = [f"value {i} " * 20 for i in range(200)]
        produce(name, values, *options)
        same(read(name), values)

    return run


def headers():
    name = new_topic("headers")
    produce(name, ["v"], "-H", "a=1", "-H", "b=2", "-H", "a=3")
    same(read(name, form="%h\n"), ["a=1,b=2,a=3"])


def seek():
    name = new_topic("seek")
    produce(name, range(100))
    same(read(name, "-o", "42", "-c", "1"), ["42"])
    same(read(name, "-o", "-1"), ["99"])


def by_timestamp():
    name = new_topic("time")
    produce(name, ["early"])
    time.sleep(0.1)
    between = int(time.time() * 1000)
    time.sleep(0.1)
    produce(name, ["late"])
    same(kcat("-Q", "-t", f"{name}:0:{between}").split()[-1], "1")


def large():
    name = new_topic("large")
    produce(name, ["x" * LARGE])
    same(read(name, form="%S\n"), [str(LARGE)])


def thousand_partitions():
    name = new_topic("thousand", 1000)
    require(f'topic "{name}" with 1000 partitions' in kcat("-L", "-t", name), "not all partitions are listed")
    # Keys enough that none is without a record.
    produce(name, [f"k{i}:v" for i in range(20_000)], "-K", ":")
    found = read(name, form="%p\n")
    same((len(found), len(set(found))), (20_000, 1000))
    quipu("topic", "delete", name)


class Member:
    """A member of a group, told by what kcat prints."""

    def __init__(self, group, name, instance=None, cooperative=False):
        options = [
            *("-X", "auto.offset.reset=earliest", "-f", "%p %o\n", "-u"),
            *("-X", "partition.assignment.strategy=" + ("cooperative-sticky" if cooperative else "range")),
            *(("-X", f"group.instance.id={instance}") if instance else ()),
        ]
        command = ["kcat", "-b", BOOTSTRAP, *options, "-G", group, name]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.records, self.partitions = [], set()
        for pipe, take in [(self.process.stdout, self.take_record), (self.process.stderr, self.take_note)]:
            threading.Thread(target=lambda pipe=pipe, take=take: [take(line) for line in pipe], daemon=True).start()

    def take_record(self, line):
        partition, offset = line.split()
        self.records.append((int(partition), int(offset)))

    def take_note(self, line):
        _, rebalanced, named = line.partition("assigned: ")
        if rebalanced:
            self.partitions = {int(part.split("]")[0]) for part in named.split("[")[1:]}
        elif "revoked: " in line:
            self.partitions = set()

    def poll(self):
        time.sleep(0.1)
        require(self.process.poll() is None, "kcat has ended")
        taken, self.records = self.records, []
        return taken

    def assigned(self):
        return self.partitions

    def commit(self):
        # It does so by itself every five seconds.
        time.sleep(7)

    def close(self):
        self.process.terminate()
        self.process.wait(30)


class Committing(Member):
    """It does so by itself."""

    def commit(self):
        pass


class Sender:
    """Produces with idempotence, and takes acknowledgements as they come: in order."""

    def __init__(self, name):
        options = ["-l", "-vv", "-X", "enable.idempotence=true"]
        self.waiting = collections.deque()
        command = ["kcat", "-b", BOOTSTRAP, "-P", "-t", name, *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.reading = threading.Thread(target=self.read)
        self.reading.start()

    def read(self):
        for line in self.process.stderr:
            if "Message delivered" in line:
                self.waiting.popleft()()

    def send(self, value, acked):
        self.waiting.append(acked)
        self.process.stdin.write(value.decode() + "\n")
        self.process.stdin.flush()

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)
        self.reading.join()


at_work(Sender, Committing)

no_admin = "the client has no admin"
check("create and list topics", create_and_list)
check("auto-create", auto_create)
for kind in CODECS:
    check(f"codec {kind}", round_trip("-z", kind))
check("headers, duplicates too", headers)
for level in ["0", "1", "all"]:
    check(f"acks {level}", round_trip("-X", f"acks={level}"))
check("idempotence", round_trip("-X", "enable.idempotence=true"))
check("offset by time", by_timestamp)
check("seek", seek)
check("large message", large)
check("1,000 partitions", thousand_partitions)
for feature in ["topic settings", "more partitions", "delete records", "delete topic"]:
    check(feature, lambda: no_admin)


def produce_keyed(name, records):
    lines = [f"{record.get('key', b'k').decode()}:{record['value'].decode()}" for record in records]
    produce(name, lines, "-K", ":")


check_groups(new_topic, produce_keyed, Member, lambda group: no_admin, cooperative=False)


def read_full(name, _):
    def record(line):
        key, value, headers, timestamp = line.split("|")
        pairs = [tuple(header.split("=")) for header in headers.split(",")]
        return key, value, pairs, int(timestamp)

    return [record(line) for line in read(name, form="%k|%s|%h|%T\n")]


check_grpc(new_topic, None, read_full)
