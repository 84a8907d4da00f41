"""Quipu's nodes as the suite runs them: one alone, or three with voters, each a process with its data in a directory that goes with it."""

import json
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request

STARTS = 60


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def eventually(condition, what, seconds):
    """Waits until a condition holds, and answers with what it gave."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(what)
        time.sleep(0.1)
    return found


class Node:
    """A node on the same ports each time that it starts."""

    def __init__(self, binary, data, *, http=None, arguments=("dev",), kafka=None, grpc=None):
        self.binary, self.data, self.arguments = binary, pathlib.Path(data), arguments
        kafka, grpc, self.http = kafka or free_port(), grpc or free_port(), http or free_port()
        self.bootstrap, self.grpc = f"127.0.0.1:{kafka}", f"127.0.0.1:{grpc}"
        self.data.mkdir(parents=True, exist_ok=True)
        self.process = None

    def spawn(self):
        listens = ["--kafka-listen", self.bootstrap, "--grpc-listen", self.grpc, "--http-listen", f"127.0.0.1:{self.http}"]
        command = [self.binary, *self.arguments, "--data-dir", self.data / "data", *listens]
        with open(self.data / "log", "a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def wait(self):
        """Waits until it takes requests."""
        eventually(self.is_ready, f"the node did not start: see {self.data}/log", STARTS)

    def is_ready(self):
        if self.process.poll() is not None:
            raise AssertionError("the node ended: " + (self.data / "log").read_text()[-2000:])
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.http}/readyz", timeout=1)
            return True
        except OSError:
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        self.process.terminate()
        self.process.wait(30)


class Single:
    """A node by itself."""

    def __init__(self, binary):
        self.directory = tempfile.mkdtemp(prefix="quipu-interop-")
        self.node = Node(binary, self.directory)
        self.bootstrap, self.grpc = self.node.bootstrap, self.node.grpc
        self.node.spawn()
        self.node.wait()

    def close(self):
        self.node.close()
        shutil.rmtree(self.directory)


class Cluster:
    """Three nodes."""

    def __init__(self, binary):
        self.binary = binary
        self.directory = tempfile.mkdtemp(prefix="quipu-interop-")
        grpc = {number: free_port() for number in (1, 2, 3)}
        voters = ",".join(f"{number}@127.0.0.1:{port}" for number, port in grpc.items())
        self.nodes = {
            number: Node(
                binary,
                f"{self.directory}/{number}",
                grpc=port,
                arguments=("server", "--node-id", str(number), "--voters", voters),
            )
            for number, port in grpc.items()
        }
        self.bootstrap = ",".join(node.bootstrap for node in self.nodes.values())
        self.grpc = ",".join(node.grpc for node in self.nodes.values())
        for node in self.nodes.values():
            node.spawn()
        for node in self.nodes.values():
            node.wait()

    def quipu(self, *arguments):
        command = [self.binary, *arguments, "--broker", self.grpc]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    def asked(self, *arguments):
        """What a command says in JSON; none where it fails."""
        done = self.quipu(*arguments, "--json")
        return json.loads(done.stdout) if done.returncode == 0 else None

    def new_topic(self, name, partitions):
        made = self.quipu("topic", "create", name, "--partitions", str(partitions), "--replication-factor", "3")
        if made.returncode != 0:
            raise AssertionError(made.stderr[-200:])
        eventually(lambda: len(self.leaders(name)) == partitions, "the topic has no leaders", STARTS)

    def leaders(self, topic):
        """Which node leads each partition, where one does."""
        states = (self.asked("topic", "describe", topic) or {}).get("partition_states", [])
        return {state["partition"]: state["leader"]["id"] for state in states if state["leader"]}

    def committed(self, group):
        """How many records a group has behind it, and which node coordinates it."""
        found = self.asked("group", "describe", group) or {"partitions": [], "coordinator": 0}
        return sum(partition["offset"] or 0 for partition in found["partitions"]), found["coordinator"]

    def records(self, topic):
        """All records: their partitions, offsets and values."""
        read = self.quipu("consume", topic)
        if read.returncode != 0:
            raise AssertionError(read.stderr[-200:])
        rows = [line.split("\t") for line in read.stdout.splitlines()]
        return [(int(row[0]), int(row[1]), row[-1]) for row in rows]

    def kill(self, number):
        self.nodes[number].kill()

    def bring_back(self, number):
        self.nodes[number].spawn()
        self.nodes[number].wait()

    def wait_until_well(self):
        """Brings back who is dead, and waits until every partition has its leader."""
        for node in self.nodes.values():
            if node.process.poll() is not None:
                node.spawn()
                node.wait()
        eventually(lambda: self.quipu("cluster", "status").returncode == 0, "the cluster is not well again", STARTS)

    def close(self):
        for node in self.nodes.values():
            node.close()
        shutil.rmtree(self.directory)
