"""What one visitor's download does to the others on the same agent."""

import threading
import time
from collections.abc import Callable

from . import clients, machine
from .edge import Edge, Stack
from .place import BIG
from .procs import BenchError
from .scale import Scale

Metrics = dict[str, float]

STALLED = 3
# Small requests come at this pace, so that they measure the edge and do not load it.
PACE = 0.01


def stall(stack: Stack, edge: Edge, scale: Scale) -> Metrics:
    """Three visitors begin the big download and read nothing, while others make small requests."""
    before, failed_before = _small_requests(edge, scale.stalled / 3)
    stalled: list[clients.Visitor] = []
    watch = Watch(edge)
    try:
        with watch:
            for _ in range(STALLED):
                visitor = clients.Visitor(edge, receive_buffer=4096)
                stalled.append(visitor)
                visitor.ask(BIG)
                if (status := visitor.head()[0]) != 200:
                    raise BenchError(f"the download was answered with {status}")
            during, failed = _small_requests(edge, scale.stalled)
    finally:
        for visitor in stalled:
            visitor.close()
    return {
        "before_p50_ms": clients.percentile(before, 50),
        "before_p99_ms": clients.percentile(before, 99),
        "during_p50_ms": clients.percentile(during, 50),
        "during_p99_ms": clients.percentile(during, 99),
        "failed": failed_before + failed,
        "growth_mib": watch.growth_kib / 1024,
        "spooled_mib": watch.spooled / 2**20,
        "left_mib": _gone(edge) / 2**20,
    }


def mixed(stack: Stack, edge: Edge, scale: Scale) -> Metrics:
    """Small requests alone, then beside a download at full speed on the same agent."""
    seconds = max(3.0, scale.seconds)
    alone, failed_alone = _small_requests(edge, seconds)
    with clients.Endless(edge) as download:
        time.sleep(0.3)
        beside, failed = _small_requests(edge, seconds)
    return {
        "alone_p50_ms": clients.percentile(alone, 50),
        "alone_p99_ms": clients.percentile(alone, 99),
        "beside_p50_ms": clients.percentile(beside, 50),
        "beside_p99_ms": clients.percentile(beside, 99),
        "failed": failed_alone + failed,
        "beside_mb_s": download.mb_s,
        "added_ms": clients.percentile(beside, 99) - clients.percentile(alone, 99),
    }


class Watch:
    """Memory and nameless files of an edge, at their highest while the `with` lasts."""

    def __init__(self, edge: Edge):
        self.edge, self.growth_kib, self.spooled = edge, 0, 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self.before = machine.settled_pss_kib(self.edge.pids)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _look(self) -> None:
        while not self.stop.wait(0.25):
            self.growth_kib = max(self.growth_kib, machine.pss_kib(self.edge.pids) - self.before)
            self.spooled = max(self.spooled, machine.spooled_bytes(self.edge.pids))


def _small_requests(edge: Edge, seconds: float) -> tuple[list[float], int]:
    """Milliseconds of each request on one kept connection, and how many failed. One that fails counts
    as having taken all the time there was, and the next comes on a new connection."""
    times, failed = [], 0
    visitor = _reach(lambda: clients.Visitor(edge))
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            try:
                visitor = visitor or clients.Visitor(edge)
                times.append(visitor.get())
            except (OSError, BenchError):
                times.append(clients.TIMEOUT * 1e3)
                failed += 1
                if visitor:
                    visitor.close()
                visitor = None
            time.sleep(PACE)
    finally:
        if visitor:
            visitor.close()
    return times, failed


def _reach(connect: Callable[[], clients.Visitor]) -> clients.Visitor | None:
    """A first connection, with a request that is not counted: it opens the way to the backend."""
    try:
        visitor = connect()
        visitor.get()
        return visitor
    except (OSError, BenchError):
        return None


def _gone(edge: Edge, limit: float = 5) -> int:
    """What is left of the nameless files some time after their streams have ended."""
    end = time.monotonic() + limit
    while (left := machine.spooled_bytes(edge.pids)) and time.monotonic() < end:
        time.sleep(0.1)
    return left
