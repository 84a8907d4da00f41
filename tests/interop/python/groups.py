"""What members of a group see, whatever client they use.

A client is opened by a function that is given the group, the topic and options (`instance`: it is a static member; `cooperative`:
it takes over partitions one by one; `new_protocol`: the coordinator assigns them); a topic that begins with ^ is a pattern. It has poll() -> [(partition, offset)], assigned() -> partitions, commit() and close().
"""

import json
import os
import subprocess
import threading
import time

from features import check, require, same, topic

PARTITIONS = 4
SETTLES = 30


class Member:
    """A client at work in a thread of its own."""

    def __init__(self, opens, *where, **options):
        self.records, self.assigned, self.changes, self.emptied, self.failure = [], frozenset(), 0, False, None
        self._ends, self._commit = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(opens, where, options), daemon=True)
        self._thread.start()

    def _run(self, opens, where, options):
        try:
            client = opens(*where, **options)
            while not self._ends.is_set():
                self.records += client.poll()
                now = frozenset(client.assigned())
                if now != self.assigned:
                    self.changes += 1
                    self.emptied |= not now
                    self.assigned = now
                if self._commit.is_set():
                    client.commit()
                    self._commit.clear()
            client.close()
        except Exception as error:  # noqa: BLE001: told to who looks at it next
            self.failure = error

    def commit(self):
        self._commit.set()
        eventually(lambda: self.looked() and not self._commit.is_set(), "the offsets were not stored")

    def looked(self):
        if self.failure:
            raise self.failure
        return self

    def end(self):
        self._ends.set()
        self._thread.join(SETTLES)
        self.looked()


def eventually(condition, what, seconds=SETTLES):
    end = time.monotonic() + seconds
    while not condition():
        require(time.monotonic() < end, what)
        time.sleep(0.05)


def counts(*members):
    """How many partitions each has, where no two have the same."""
    held = [member.looked().assigned for member in members]
    return [len(mine) for mine in held] if len(frozenset().union(*held)) == sum(map(len, held)) else []


def quipu(*arguments, lines=""):
    command = [os.environ["QUIPU"], *arguments, "--broker", os.environ["GRPC"]]
    return subprocess.run(command, input=lines, capture_output=True, text=True, check=True, timeout=60).stdout


def check_groups(new_topic, produce, opens, list_and_delete, static=True, cooperative=True, new_protocol=False):
    """`list_and_delete` is given a group without members: it lists, describes and deletes it by what the client has for that."""

    protocol = {"new_protocol": True} if new_protocol else {}

    def new(**options):
        name, group = new_topic("group", PARTITIONS), topic("g")
        return name, group, lambda **more: Member(opens, group, name, **protocol, **options, **more)

    def shares():
        _, _, member = new()
        first = member()
        eventually(lambda: counts(first) == [4], "the only member has not all")
        second = member()
        eventually(lambda: counts(first, second) == [2, 2], "the partitions are not shared")
        second.end()
        eventually(lambda: counts(first) == [4], "who is left has not all")
        first.end()

    def resumes():
        name, _, member = new()
        produce(name, [{"value": b"%d" % i, "key": b"%d" % i} for i in range(20)])
        first = member()
        eventually(lambda: len(first.looked().records) == 20, "not all was read")
        first.commit()
        first.end()
        produce(name, [{"value": b"new", "key": b"%d" % i} for i in range(5)])
        second = member()
        eventually(lambda: len(second.looked().records) >= 5, "what is new was not read")
        time.sleep(1)
        second.end()
        same(len(second.records), 5)
        require(not set(first.records) & set(second.records), "read twice")

    def takes_over_one_by_one():
        if not cooperative:
            return "the client cannot"
        _, _, member = new(cooperative=True)
        first = member()
        eventually(lambda: counts(first) == [4], "the only member has not all")
        second = member()
        eventually(lambda: counts(first, second) == [2, 2], "the partitions are not shared")
        require(not first.emptied, "it let go of all on the way")
        second.end()
        eventually(lambda: counts(first) == [4], "who is left has not all")
        first.end()

    def by_pattern():
        stem = topic("stem")
        for name, count in [(f"{stem}-a", 5), (f"{stem}-b", 7), ("other", 3)]:
            produce(new_topic(name, 1), [{"value": b"a"}] * count)
        member = Member(opens, topic("g"), f"^{stem}.*", **protocol)
        eventually(lambda: len(member.looked().records) >= 12, "not all was read")
        time.sleep(1)
        member.end()
        same(len(member.records), 12)

    def static_member():
        if not static:
            return "the client has no static members"
        _, _, member = new()
        first, second = member(instance="one"), member(instance="two")
        eventually(lambda: counts(first, second) == [2, 2], "the partitions are not shared")
        had, changes = first.assigned, second.changes
        first.end()
        again = member(instance="one")
        eventually(lambda: again.looked().assigned == had, "it did not get what it had")
        time.sleep(1)
        same(second.looked().changes, changes)
        again.end()
        second.end()

    def seen_by_admin():
        name, group, member = new()
        produce(name, [{"value": b"a"}])
        first = member()
        eventually(lambda: first.looked().records, "nothing was read")
        first.commit()
        first.end()
        return list_and_delete(group)

    def with_grpc():
        name, group, member = new()
        lines = "".join(f"line {i}\n" for i in range(40))
        quipu("produce", name, lines=lines)
        first = member()
        eventually(lambda: len(first.looked().records) == 40, "not all was read")
        first.commit()
        shown = json.loads(quipu("group", "describe", group, "--json"))
        same(len(shown["members"]), 1)
        same(sum(partition["offset"] or 0 for partition in shown["partitions"]), 40)
        same(sum(partition["lag"] or 0 for partition in shown["partitions"]), 0)
        first.end()
        quipu("group", "reset-offsets", group, "--topic", name, "--to", "earliest")
        again = member()
        eventually(lambda: len(again.looked().records) == 40, "not all was read again")
        again.end()

    if new_protocol:
        check("new group protocol: shares partitions", shares)
        check("new group protocol: commits and resumes", resumes)
        check("new group protocol: static member", static_member)
        check("new group protocol: regex", by_pattern)
        return
    check("group shares partitions", shares)
    check("group commits and resumes", resumes)
    check("group, cooperative", takes_over_one_by_one)
    check("group, static member", static_member)
    check("group, topics by pattern", by_pattern)
    check("group seen by admin", seen_by_admin)
    check("group with gRPC", with_grpc)
