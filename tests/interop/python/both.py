"""Records are the same ones over gRPC: with their keys, headers and times, whatever compressed them."""

import json

from features import CODECS, check, same
from groups import quipu

HEADERS = [("a", "1"), ("b", ""), ("a", "2")]
COUNT = 50


def over_grpc(name):
    """All records as gRPC has them: key, value, headers, milliseconds since 1970."""
    lines = quipu("consume", name, "--format", "json").splitlines()
    found = [json.loads(line) for line in lines]
    return [(it["key"], it["value"], [(h["key"], h["value"]) for h in it["headers"]], it["timestamp"]) for it in found]


def check_grpc(new_topic, write, read, codecs=CODECS):
    """`write(topic, codec, records)` takes records as `over_grpc` gives them, and `read(topic, count)` gives such.
    No `write`: the client cannot set a record's time."""

    def written_by_kafka():
        if write is None:
            return "the client sets no times"
        for codec in codecs:
            name = new_topic("to-grpc")
            records = [(f"k{i}", f"value {i} " * 20, HEADERS, 1_700_000_000_000 + i) for i in range(COUNT)]
            write(name, codec, records)
            same(over_grpc(name), records)

    def written_by_grpc():
        for codec in codecs:
            name = new_topic("from-grpc")
            lines = "".join(f"k{i}:" + f"value {i} " * 20 + "\n" for i in range(COUNT))
            headers = [option for key, value in HEADERS for option in ("--header", f"{key}={value}")]
            quipu("produce", name, "--key-separator", ":", "--compression", codec, *headers, lines=lines)
            found = read(name, COUNT)
            same([(key, value, headers) for key, value, headers, _ in found], [
                (f"k{i}", f"value {i} " * 20, HEADERS) for i in range(COUNT)
            ])
            same(found, over_grpc(name))

    check("written here, read over gRPC", written_by_kafka)
    check("written over gRPC, read here", written_by_grpc)
