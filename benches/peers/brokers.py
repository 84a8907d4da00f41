"""The brokers: each a process of its own, on loopback, with its data in a directory that goes with it."""

import os
import pathlib
import shutil
import socket
import subprocess
import time

from tools import sh

PATIENCE = 180
# As Kafka's own start script has them.
JVM = [
    "-Xms1G",
    "-Xmx1G",
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
    "-Djava.awt.headless=true",
]
# Kafka's defaults, but for what one node cannot have, and that it neither waits for more members of a group nor for a minute
# until files of deleted topics go: neither is measured.
PROPERTIES = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{controller}
listeners=PLAINTEXT://{bootstrap},CONTROLLER://{controller}
advertised.listeners=PLAINTEXT://{bootstrap}
controller.listener.names=CONTROLLER
log.dirs={data}
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.segment.delete.delay.ms=1000
"""


def free_address():
    """An address of loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class Broker:
    """A running broker."""

    def __init__(self, name, folder, bootstrap, command):
        self.name, self.folder, self.bootstrap = name, folder, bootstrap
        self.log = folder / "log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            self.wait()
        except BaseException:
            self.stop()
            raise

    def wait(self):
        """Waits until it takes connections."""
        host, port = self.bootstrap.split(":")
        end = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"{self.name} did not start: {self.log.read_text()[-4000:]}")
                time.sleep(0.1)

    def cpu_seconds(self):
        """Processor time that it has used, user and system."""
        stat = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text()
        fields = stat.rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self, field):
        """Memory from its status, in MB: `VmRSS`, `RssAnon`."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(field + ":"))
        return int(line.split()[1]) * 1024 / 1e6

    def stop(self):
        """Ends it and removes its data."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder)


def quipu(folder, binary):
    """Quipu with its defaults."""
    folder.mkdir()
    bootstrap = free_address()
    command = [binary, "dev", "--data-dir", folder / "data", "--kafka-listen", bootstrap]
    return Broker("Quipu", folder, bootstrap, command + ["--grpc-listen", free_address(), "--http-listen", free_address()])


def kafka(folder, jars):
    """Kafka with its defaults, broker and controller in one process."""
    folder.mkdir()
    bootstrap = free_address()
    properties = folder / "server.properties"
    properties.write_text(
        PROPERTIES.format(bootstrap=bootstrap, controller=free_address(), data=folder / "data")
    )
    storage = ["java", "-cp", jars, "kafka.tools.StorageTool"]
    cluster = sh(*storage, "random-uuid").split()[-1]
    sh(*storage, "format", "-t", cluster, "-c", properties)
    return Broker("Kafka", folder, bootstrap, ["java", *JVM, "-cp", jars, "kafka.Kafka", properties])
