"""Kafka and the clients' load generators, from their registries, into a directory of their own."""

import pathlib
import shutil
import subprocess

KAFKA = "4.4.0"
RDKAFKA_SYS = "4.10.0"

POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>quipu.benches</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA}</version></dependency>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>{KAFKA}</version></dependency>
  </dependencies>
</project>
"""

# The crate rdkafka-sys carries librdkafka's sources, its examples among them.
MANIFEST = f"""[package]
name = "sources"
edition = "2024"
[dependencies]
rdkafka-sys = {{ version = "={RDKAFKA_SYS}", default-features = false }}
[workspace]
"""


def sh(*command, **options):
    """Runs a command; what it prints is shown only where it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-4000:]}")
    return done.stdout


def jars(cache):
    """The class path of Kafka and its tools."""
    folder = cache / f"kafka-{KAFKA}"
    if not folder.exists():
        fresh = cache / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        (fresh / "pom.xml").write_text(POM)
        sh("mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={fresh}/lib", cwd=fresh)
        (fresh / "lib").rename(folder)
        shutil.rmtree(fresh)
    return f"{folder}/*"


def rdkafka_performance(cache):
    """The binary of librdkafka's own performance tool, compiled with that library's sources."""
    binary = cache / f"rdkafka_performance-{RDKAFKA_SYS}"
    if not binary.exists():
        project = cache / "librdkafka"
        (project / "src").mkdir(parents=True, exist_ok=True)
        (project / "src/lib.rs").touch()
        (project / "Cargo.toml").write_text(MANIFEST)
        sh("cargo", "vendor", "-q", "vendor", cwd=project)
        sources = project / "vendor/rdkafka-sys/librdkafka"
        without = [f"--disable-{part}" for part in ["ssl", "gssapi", "curl", "zlib", "zstd", "lz4-ext"]]
        sh("./configure", *without, cwd=sources)
        sh("make", "-j2", "-C", "src", "librdkafka.a", cwd=sources)
        sh("make", "-C", "examples", "rdkafka_performance", cwd=sources)
        shutil.copy(sources / "examples/rdkafka_performance", binary)
        shutil.rmtree(project)
    return pathlib.Path(binary)
