"""How much memory: an idle agent, an idle visitor, WebSockets that are held, a steady load.

Each has a start of its own, and a few of the same kind come before the first reading, so that
what an edge needs once is not counted for each.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean, linear_regression

from . import clients, machine
from .agents import web_agent
from .edge import Edge, Stack
from .procs import BenchError
from .scale import Scale

Metrics = dict[str, float]

# Visitors' WebSockets are spread over so many agents; a session has a bound on its channels.
WEBSOCKET_AGENTS = 4


def agents(stack: Stack, edge: Edge, scale: Scale) -> Metrics:
    """The edge's memory for an agent that holds a tunnel and does nothing."""
    count = scale.heavy_agents if stack.heavy_agents else scale.agents
    swarms = [stack.idle_agents(edge, scale.warm_agents)]
    before = machine.settled_pss_kib(edge.pids)
    swarms.append(stack.idle_agents(edge, count))
    after = machine.settled_pss_kib(edge.pids)
    if gone := sum(swarm() for swarm in swarms):
        raise BenchError(f"{gone} of {scale.warm_agents + count} agents lost the edge")
    return {"agents": count, "kib": (after - before) / count}


def visitors(stack: Stack, edge: Edge, scale: Scale) -> Metrics:
    """The edge's memory for a kept connection that made one request and does nothing: with HTTP/1.1,
    and then, while those are still there, with HTTP/2."""
    held: list[clients.Visitor] = []
    try:
        return {
            "visitors": scale.visitors,
            "kib": _kib_each(edge, held, scale, clients.Visitor),
            "h2_kib": _kib_each(edge, held, scale, clients.H2Visitor),
        }
    finally:
        for visitor in held:
            visitor.close()


def _kib_each(edge: Edge, held: list[clients.Visitor], scale: Scale, kind: type[clients.Visitor]) -> float:
    """Memory for each of those that come; all of them must answer once more at the end."""
    _hold(edge, held, scale.warm_visitors, kind)
    before = machine.settled_pss_kib(edge.pids)
    first = len(held)
    _hold(edge, held, scale.visitors, kind)
    after = machine.settled_pss_kib(edge.pids)
    dead = sum(not _answers(visitor) for visitor in held[first - scale.warm_visitors :])
    if dead:
        raise BenchError(f"{dead} of {scale.warm_visitors + scale.visitors} idle visitors were cut off")
    return (after - before) / scale.visitors


def websockets(stack: Stack, edge: Edge, scale: Scale) -> Metrics:
    """Idle WebSockets, held for long; each still answers at the end."""
    port = machine.free_ports(1)[0]
    service = edge.children.start("websockets", "python3", "-m", "compare.websocket_service", str(port))
    service.listens(port)
    names = [f"ws{number}" for number in range(WEBSOCKET_AGENTS)]
    for name in names:
        web_agent(edge, name, port)
    held: list[clients.Visitor] = []
    try:
        _hold_websockets(edge, held, names, 20)
        before = machine.settled_pss_kib(edge.pids)
        _hold_websockets(edge, held, names, scale.websockets)
        opened, used = machine.settled_pss_kib(edge.pids), machine.cpu_seconds(edge.pids)
        time.sleep(scale.hold)
        used, end = machine.cpu_seconds(edge.pids) - used, machine.pss_kib(edge.pids)
        dead = sum(not _echoes(visitor) for visitor in held)
        if dead:
            raise BenchError(f"{dead} of {len(held)} WebSockets are dead after {scale.hold:.0f} s")
        return {
            "held": scale.websockets,
            "seconds": scale.hold,
            "kib": (opened - before) / scale.websockets,
            "growth_mib": (end - opened) / 1024,
            "cpu_percent": used / scale.hold * 100,
        }
    finally:
        for visitor in held:
            visitor.close()


def soak(stack: Stack, edge: Edge, scale: Scale) -> Metrics:
    """Everything at once for a while: kept, new and HTTP/2 connections, and a steady download."""
    samples: list[tuple[float, float]] = []
    with ThreadPoolExecutor() as pool, clients.Endless(edge, "20M") as download:
        loads = [
            pool.submit(clients.wrk, edge, 8, scale.soak),
            pool.submit(clients.wrk, edge, 2, scale.soak, "Connection: close"),
            pool.submit(clients.h2load, edge, scale.soak),
        ]
        begun = time.monotonic()
        while (now := time.monotonic() - begun) < scale.soak:
            samples.append((now, machine.pss_kib(edge.pids)))
            time.sleep(min(1.0, scale.soak / 40))
        done = [load.result() for load in loads]
    quarter = len(samples) // 4
    # The first half is the way up: allocators and pools take their time.
    times, sizes = zip(*samples[2 * quarter :], strict=True)
    return {
        "seconds": scale.soak,
        "requests": sum(one["requests"] for one in done),
        "download_mb_s": download.mb_s,
        "early_mib": fmean(sizes[:quarter]) / 1024,
        "late_mib": fmean(sizes[-quarter:]) / 1024,
        "slope_kib_min": linear_regression(times, sizes).slope * 60,
    }


def _hold(edge: Edge, held: list[clients.Visitor], count: int, kind: type[clients.Visitor]) -> None:
    for _ in range(count):
        visitor = kind(edge)
        held.append(visitor)
        visitor.get()


def _hold_websockets(edge: Edge, held: list[clients.Visitor], names: list[str], count: int) -> None:
    for number in range(count):
        visitor = clients.Visitor(edge, edge.host_of(names[number % len(names)]))
        held.append(visitor)
        visitor.ask(
            *("/", "Connection: Upgrade", "Upgrade: websocket"),
            *("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
        )
        if (status := visitor.head()[0]) != 101:
            raise BenchError(f"WebSocket {number} was answered with {status}")


def _answers(visitor: clients.Visitor) -> bool:
    try:
        visitor.get()
        return True
    except (OSError, BenchError):
        return False


def _echoes(visitor: clients.Visitor) -> bool:
    """A masked text frame there, the same text back (RFC 6455, section 5.2); the mask is zero."""
    try:
        visitor.tls.sendall(b"\x81\x82\0\0\0\0hi")
        answer = visitor.rest
        while len(answer) < 4 and (part := visitor.tls.recv(64)):
            answer += part
        return answer == b"\x81\x02hi"
    except OSError:
        return False
