"""What a client does when the node that it depends on is killed in the middle of its work, and comes back.

A runner works for as long as its standard input is open: `produce TOPIC` prints `acked VALUE` for each record that was acknowledged,
`consume GROUP TOPIC` prints `read PARTITION OFFSET` for each record and commits what it read.
"""

import os
import subprocess
import threading
import time

from nodes import eventually

PATIENCE = 90
FEATURES = ["leader killed while producing", "coordinator killed while consuming"]


class AtWork:
    """A runner at work."""

    def __init__(self, command, environment, *arguments):
        self.process = subprocess.Popen(
            [*command, *arguments], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.told = []
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.process.stdout:
            words = line.split()
            if words and words[0] in ("acked", "read"):
                self.told.append(tuple(words[1:]))

    def tells(self, more, what):
        """Waits until it has told so much more."""
        wanted = len(self.told) + more

        def has_told():
            if self.process.poll() is not None:
                raise AssertionError(f"the client ended with {self.process.returncode}")
            return len(self.told) >= wanted

        eventually(has_told, f"{what}: {len(self.told)} of {wanted}", PATIENCE)

    def stop(self):
        self.process.stdin.close()
        self.process.wait(PATIENCE)

    def kill(self):
        self.process.kill()
        self.process.wait()


class Writer:
    """Writes lines over gRPC, some hundred a second, until it is stopped."""

    def __init__(self, cluster, topic):
        command = [cluster.binary, "produce", topic, "--broker", cluster.grpc]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.ends = threading.Event()
        self.thread = threading.Thread(target=self.write, daemon=True)
        self.thread.start()

    def write(self):
        number = 0
        with self.process.stdin as lines:
            while not self.ends.is_set():
                lines.write(f"{number}\n")
                lines.flush()
                number += 1
                time.sleep(0.005)

    def stop(self):
        self.ends.set()
        self.thread.join()
        if self.process.wait(PATIENCE) != 0:
            raise AssertionError("not all could be written")


def leader_killed(cluster, command, environment, idempotent):
    topic = f"killed-{os.getpid()}-{time.time_ns()}"
    cluster.new_topic(topic, 1)
    producer = AtWork(command, environment, "produce", topic)
    try:
        producer.tells(200, "it does not begin")
        leader = cluster.leaders(topic)[0]
        cluster.kill(leader)
        producer.tells(600, "it does not go on with another leader")
        cluster.bring_back(leader)
        producer.tells(200, "it does not go on beside who came back")
        producer.stop()
    finally:
        producer.kill()
    acked = {value for (value,) in producer.told}
    in_log = [value for _, _, value in cluster.records(topic)]
    lost = acked - set(in_log)
    if lost:
        raise AssertionError(f"{len(lost)} acknowledged records are lost, {sorted(lost)[0]} is one")
    twice = len(in_log) - len(set(in_log))
    if idempotent and twice:
        raise AssertionError(f"{twice} records of {len(in_log)} are in the log twice")


def coordinator_killed(cluster, command, environment):
    topic = f"killed-{os.getpid()}-{time.time_ns()}"
    group = f"g-{topic}"
    cluster.new_topic(topic, 3)
    writer = Writer(cluster, topic)
    consumer = AtWork(command, environment, "consume", group, topic)
    try:
        consumer.tells(200, "it does not begin")
        eventually(lambda: cluster.committed(group)[0], "nothing was committed", PATIENCE)
        before, coordinator = cluster.committed(group)
        cluster.kill(coordinator)
        consumer.tells(600, "it does not go on with another coordinator")
        more = lambda: cluster.committed(group)[0] > before  # noqa: E731
        eventually(more, "nothing is committed with another coordinator", PATIENCE)
        cluster.bring_back(coordinator)
        consumer.tells(200, "it does not go on beside who came back")
        writer.stop()
        wanted = {(str(partition), str(offset)) for partition, offset, _ in cluster.records(topic)}
        eventually(lambda: wanted <= set(consumer.told), "not every record was read", PATIENCE)
        eventually(lambda: cluster.committed(group)[0] == len(wanted), "not all was committed", PATIENCE)
        consumer.stop()
    finally:
        writer.ends.set()
        consumer.kill()


def run(cluster, command, environment, idempotent):
    """Both scenarios, and what came of them."""
    scenarios = [
        lambda: leader_killed(cluster, command, environment, idempotent),
        lambda: coordinator_killed(cluster, command, environment),
    ]
    results = {}
    for feature, scenario in zip(FEATURES, scenarios):
        try:
            cluster.wait_until_well()
            scenario()
            results[feature] = ("ok", "")
        except (AssertionError, subprocess.SubprocessError) as error:
            results[feature] = ("fail", " ".join(str(error).split())[:200])
    return results
