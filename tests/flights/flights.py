"""What the flights runner computes: input lines, comparisons, ranges to replay. Records come as `quipu consume --format json`
prints them, one object a line."""

import json
import sys
from collections import defaultdict


def lines(path):
    """Events as `key<TAB>json`: the distance is the key (a route, nearly), the number makes each event unique."""
    with open(path, encoding="utf-8") as file:
        for number, event in enumerate(json.load(file)):
            print(event["distance"], json.dumps({"number": number, **event}), sep="\t")


def records(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def compare(input_path, *logs):
    """Whether the partitions' logs together hold each input line once, each key in one partition and in the input's order."""
    wanted = defaultdict(list)
    with open(input_path, encoding="utf-8") as file:
        for line in file:
            key, value = line.rstrip("\n").split("\t", 1)
            wanted[key].append(value)
    found = defaultdict(list)
    homes = defaultdict(set)
    for log in logs:
        for at, record in enumerate(records(log)):
            if record["offset"] != at:
                return f"{log}: offset {record['offset']} where {at} was due"
            found[record["key"]].append(record["value"])
            homes[record["key"]].add(log)
    for key, values in wanted.items():
        if found[key] != values:
            return f"key {key}: {len(found[key])} records where {len(values)} were sent, or in another order"
        if len(homes[key]) != 1:
            return f"key {key} is in {len(homes[key])} partitions"
    if len(found) != len(wanted):
        return "there are keys that were never sent"
    return None


def ranges(log):
    """Ranges that reach from the ends, over the middle, to single records, and times that records bear."""
    all_records = records(log)
    end = len(all_records)
    for start, stop in [(0, 1), (0, end), (end // 3, end // 2), (end // 2, end // 2 + 1), (end - 1, end)]:
        print("--from", start, "--to", stop)
    print("--from", "-10")
    for at in [0, end // 4, end // 2, end - 1]:
        print("--from", f"@{all_records[at]['timestamp']}")


def part(log, found, *arguments):
    """Whether the records found are those of the log that the arguments of `quipu consume` name."""
    options = dict(zip(arguments[::2], arguments[1::2]))
    everything = records(log)
    start = options["--from"]
    if start.startswith("@"):
        first = next(r["offset"] for r in everything if r["timestamp"] >= int(start[1:]))
    elif start.startswith("-"):
        first = len(everything) + int(start)
    else:
        first = int(start)
    last = int(options.get("--to", len(everything)))
    if records(found) != everything[first:last]:
        return f"not the records {first} to {last} of {log}"
    return None


if __name__ == "__main__":
    command = {"lines": lines, "compare": compare, "ranges": ranges, "part": part}[sys.argv[1]]
    problem = command(*sys.argv[2:])
    if problem:
        sys.exit(problem)
