"""Everybody comes at once: the gateway is killed under its agents, and started again."""

import random
import threading
import time

from . import clients, machine
from .agents import Swarm
from .edge import Edge, Stack
from .procs import BenchError
from .scale import Scale

Metrics = dict[str, float]

NAME = "storm"
LIMIT = 120.0
# Visitors who call at a time, and each one's pause between two calls, in seconds. Each call has a
# connection of its own.
CALLERS = 4
PACE = 0.05


def storm(stack: Stack, edge: Edge, scale: Scale) -> Metrics:
    """Agents with one tunnel each come, lose the gateway, and come back, while visitors call those
    that are back."""
    idle = machine.settled_pss_kib(edge.pids)
    begun = time.time()
    swarm = Swarm(edge, scale.storm, NAME)
    first = _all_there(swarm, scale.storm, Callers(edge)) - begun
    full = machine.settled_pss_kib(edge.pids)
    with Callers(edge) as callers:
        killed = time.time()
        edge.restart()
        back = _all_there(swarm, scale.storm, callers) - killed
        used = machine.cpu_seconds(edge.pids)
    if len(callers.times) < 2:
        raise BenchError("no visitor was served while the agents came back")
    return {
        "agents": scale.storm,
        "first_s": first,
        "back_s": back,
        "cpu_s": used,
        "full_mib": full / 1024,
        "back_mib": machine.settled_pss_kib(edge.pids) / 1024,
        "kib_agent": (full - idle) / scale.storm,
        "calls": len(callers.times) + callers.failed,
        "failed_calls": callers.failed,
        "call_p50_ms": clients.percentile(callers.times, 50),
        "call_p99_ms": clients.percentile(callers.times, 99),
    }


class Callers:
    """Visitors who call tunnels that are back, while the `with` lasts."""

    def __init__(self, edge: Edge):
        self.edge = edge
        self.back: list[int] = []
        self.times: list[float] = []
        self.failed = 0
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]

    def __enter__(self) -> "Callers":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def _call(self) -> None:
        while not self.stop.wait(PACE):
            if not self.back:
                continue
            host = self.edge.host_of(f"{NAME}-{random.choice(self.back)}")
            begun = time.perf_counter()
            try:
                visitor = clients.Visitor(self.edge, host)
                try:
                    visitor.get()
                finally:
                    visitor.close()
                self.times.append((time.perf_counter() - begun) * 1e3)
            except (OSError, BenchError):
                self.failed += 1


def _all_there(swarm: Swarm, count: int, callers: Callers) -> float:
    """When the last of them was there, as the swarm's own clock has it."""
    end = time.monotonic() + LIMIT
    there, failed = 0, {}
    while time.monotonic() < end:
        for news in swarm.news():
            if "connected" not in news:
                continue
            there, failed = news["connected"], news["failed"] or failed
            callers.back.extend(news["came"])
            if there == count and news["came"]:
                return news["at"]
        time.sleep(0.02)
    raise BenchError(f"{there} of {count} agents are there after {LIMIT:.0f} s; last trouble: {failed}")
