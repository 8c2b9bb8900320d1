"""How much work for how much processor: requests, new connections, bulk."""

from collections.abc import Callable

from . import clients, machine
from .edge import Edge
from .scale import Scale

Metrics = dict[str, float]


def warm_up(edge: Edge, scale: Scale) -> None:
    """Connections to the backend, session tickets, allocators: whoever comes first does not pay.
    Before the first of the rows that share a start, which are all of this file."""
    clients.wrk(edge, 10, 1)


def h1(edge: Edge, scale: Scale) -> Metrics:
    """50 kept HTTP/1.1 connections, 1 KiB answers."""
    return _per_request(edge, lambda: clients.wrk(edge, 50, scale.seconds))


def h2(edge: Edge, scale: Scale) -> Metrics:
    """10 HTTP/2 connections with 10 streams each, 1 KiB answers."""
    return _per_request(edge, lambda: clients.h2load(edge, scale.seconds))


def resumed(edge: Edge, scale: Scale) -> Metrics:
    """A connection for each request. wrk offers the session that it had, as a browser does."""
    return _per_request(edge, lambda: clients.wrk(edge, 20, scale.seconds, "Connection: close"))


def handshake(edge: Edge, scale: Scale) -> Metrics:
    """A connection for each request, with a whole handshake each time."""
    return _per_request(edge, lambda: clients.handshakes(edge, scale.seconds))


def one(edge: Edge, scale: Scale) -> Metrics:
    """One visitor, one request at a time."""
    return _per_request(edge, lambda: clients.wrk(edge, 1, scale.seconds))


def bulk(streams: int, repeat: int) -> Callable[[Edge, Scale], Metrics]:
    """256 MiB down, `streams` at a time."""

    def run(edge: Edge, scale: Scale) -> Metrics:
        before = machine.cpu_seconds(edge.pids)
        metrics = clients.downloads(edge, streams, repeat)
        used = machine.cpu_seconds(edge.pids) - before
        return {**metrics, "cpu_s_gb": used / metrics["bytes"] * 1e9}

    return run


def _per_request(edge: Edge, work: Callable[[], Metrics]) -> Metrics:
    before = machine.cpu_seconds(edge.pids)
    metrics = work()
    used = machine.cpu_seconds(edge.pids) - before
    return {**metrics, "cpu_us": used / metrics["requests"] * 1e6}
