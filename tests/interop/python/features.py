"""What a runner tries, and how it tells what came of it: a line for each feature."""

import os
import sys
import time
import traceback

BOOTSTRAP = os.environ["BOOTSTRAP"]
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
LARGE = 900_000


def topic(name):
    """A name that no other run has."""
    return f"{name}-{os.getpid()}-{time.time_ns()}"


def check(feature, function):
    """Tries a feature and says how it went. A function that returns text skips it for that reason."""
    try:
        skipped = function()
    except Exception as error:  # noqa: BLE001: any failure is a failed feature
        traceback.print_exc()
        line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        print(f"{feature}\tfail\t{line}", flush=True)
        return
    if isinstance(skipped, str):
        print(f"{feature}\tskip\t{skipped}", flush=True)
    else:
        print(f"{feature}\tok\t", flush=True)


def require(condition, what):
    if not condition:
        raise AssertionError(what)


def same(found, wanted):
    if found != wanted:
        raise AssertionError(f"{found!r} is not {wanted!r}"[:200])


sys.path.insert(0, os.path.dirname(__file__))
