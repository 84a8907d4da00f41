"""A client at work for as long as its standard input is open, while others kill nodes."""

import sys
import threading
import time

EVERY = 0.005


def at_work(sender, member):
    """Does `produce TOPIC` or `consume GROUP TOPIC` where the command line says so, and ends with it.

    `sender(topic)` has send(value, acked) and close(), which waits; `member(group, topic)` is a member as in groups.py.
    """
    if len(sys.argv) < 2:
        return
    ends = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ends.set()), daemon=True).start()
    mode, *where = sys.argv[1:]
    if mode == "produce":
        produce(sender(*where), ends)
    else:
        consume(member(*where), ends)
    sys.exit()


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def produce(sender, ends):
    number = 0
    while not ends.is_set():
        sender.send(b"%d" % number, lambda value=number: say("acked", value))
        number += 1
        time.sleep(EVERY)
    sender.close()


def consume(member, ends):
    # What fails for now is tried again with the next records, as an application would.
    while not ends.is_set():
        try:
            records = member.poll()
            for partition, offset in records:
                say("read", partition, offset)
            if records:
                member.commit()
        except Exception as error:  # noqa: BLE001
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
    member.close()
