"""Writes and reads record batches with kafka-python, a foreign implementation of the format.

    pip install --target DEPS kafka-python python-snappy lz4 zstandard
    PYTHONPATH=DEPS python generate_batches.py                 # write batch/*.batch and batch/records.json
    PYTHONPATH=DEPS python generate_batches.py --verify DIR    # read DIR/*.batch, fail unless they hold those records
"""

import argparse
import json
import pathlib
import sys

from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
PRODUCER = {"id": 4711, "epoch": 3, "sequence": 2**31 - 5}
START = 1_700_000_000_000


def records():
    """(timestamp, key, value, headers), bytes as None or (pattern, times)."""
    edge = [
        (START, None, None, []),
        (START + 5, (b"", 1), (b"", 1), []),
        (START - 70_000, (b"key", 1), None, [("only", None)]),
        (START + 2**40, None, (b"\x00\xff\x80", 1), [("a", (b"1", 1)), ("b", (b"", 1)), ("a", (b"2", 1))]),
        (START + 64, ("schlüssel".encode(), 1), ("värde ☃".encode(), 1), [("ключ", (b"v", 1)), ("", None)]),
        # More than one block of snappy's and lz4's framing.
        (START + 8191, (b"long", 1), (b"0123456789abcdef", 4500), []),
    ]
    return edge + [
        (START + n, (b"key-%d" % n, 1), (b"value %d " % n, 1 + n % 40), [("n", (b"%d" % n, 1))]) for n in range(70)
    ]


def plain(pattern):
    return None if pattern is None else pattern[0] * pattern[1]


def described(pattern):
    return None if pattern is None else {"hex": pattern[0].hex(), "times": pattern[1]}


def write(directory):
    for name, codec in CODECS.items():
        builder = DefaultRecordBatchBuilder(
            magic=2,
            compression_type=codec,
            is_transactional=False,
            producer_id=PRODUCER["id"],
            producer_epoch=PRODUCER["epoch"],
            base_sequence=PRODUCER["sequence"],
            batch_size=1 << 30,
        )
        for offset, (timestamp, key, value, headers) in enumerate(records()):
            builder.append(offset, timestamp, plain(key), plain(value), [(k, plain(v)) for k, v in headers])
        batch = bytes(builder.build())
        assert DefaultRecordBatch(batch).compression_type == codec
        (directory / f"{name}.batch").write_bytes(batch)
    description = {
        "producer": PRODUCER,
        "records": [
            {
                "timestamp": timestamp,
                "key": described(key),
                "value": described(value),
                "headers": [{"key": k, "value": described(v)} for k, v in headers],
            }
            for timestamp, key, value, headers in records()
        ],
    }
    text = json.dumps(description, ensure_ascii=False, indent=1) + "\n"
    (directory / "records.json").write_text(text, encoding="utf-8")


def verify(directory):
    expected = [(t, plain(k), plain(v), [(name, plain(h)) for name, h in hs]) for t, k, v, hs in records()]
    for name, codec in CODECS.items():
        batch = DefaultRecordBatch((directory / f"{name}.batch").read_bytes())
        assert batch.validate_crc(), f"{name}: CRC"
        assert batch.compression_type == codec, f"{name}: codec {batch.compression_type}"
        producer = {"id": batch.producer_id, "epoch": batch.producer_epoch, "sequence": batch.base_sequence}
        assert producer == PRODUCER, f"{name}: {producer}"
        assert batch.max_timestamp == max(t for t, *_ in expected), f"{name}: max timestamp"
        found = [(r.timestamp, r.key, r.value, r.headers) for r in batch]
        assert found == expected, f"{name}: records differ"
        print(f"{name}: {len(found)} records as expected")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--verify", metavar="DIR", type=pathlib.Path)
    directory = arguments.parse_args().verify
    if directory:
        sys.exit(verify(directory))
    write(pathlib.Path(__file__).parent / "batch")
