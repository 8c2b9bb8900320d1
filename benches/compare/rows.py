"""The rows of the table: what is measured, on which stacks, and what is to be reached.

To add a row, write its work (a function of stack, edge and scale that returns metrics) and list
it here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from . import fairness, memory, speed, storm
from .edge import Edge, Stack
from .scale import Scale

Metrics = Mapping[str, float]
Work = Callable[[Stack, Edge, Scale], dict[str, float]]

ROUTES = ("haproxy", "nginx", "route")
TUNNELS = ("sshd", "tunnel", "old")
ALL = ROUTES + TUNNELS


class Start(Enum):
    """What a row's work runs on."""

    SHARED = "one start of the stack for all such rows of a round"
    OWN = "a start of its own, each round"
    ONCE = "a start of its own, in the first round only"


@dataclass(frozen=True)
class Goal:
    """`metric` of `stack` is to be at most (or at least) `factor` × the rivals' + `plus`.

    A rival is a stack and a metric of the same row. Of several the best counts. Without one,
    the limit is `plus` alone.
    """

    stack: str
    metric: str
    label: str
    at_most: bool = True
    rivals: tuple[tuple[str, str], ...] = ()
    factor: float = 1.0
    plus: float = 0.0
    unit: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    key: str
    title: str
    stacks: tuple[str, ...]
    start: Start
    work: Work
    cell: Callable[[Metrics], str]
    goals: tuple[Goal, ...] = ()


def than(stack: str, metric: str, label: str, rivals: str, factor: float = 1.0, at_most: bool = True) -> Goal:
    """A ratio to what rivals (commas between them) have of the same metric."""
    return Goal(stack, metric, label, at_most, tuple((rival, metric) for rival in rivals.split(",")), factor)


def _shared(work: Callable[[Edge, Scale], dict[str, float]]) -> Work:
    return lambda stack, edge, scale: work(edge, scale)


def _requests(metrics: Metrics) -> str:
    rate, cpu = f"{metrics['rps'] / 1000:.1f}k rps", f"{metrics['cpu_us']:.0f} µs"
    return ", ".join([cpu, rate] + ([f"p99 {_ms(metrics['p99_ms'])}"] if "p99_ms" in metrics else []))


def _cpu(metrics: Metrics) -> str:
    return f"{metrics['cpu_us']:.0f} µs"


def _bulk(metrics: Metrics) -> str:
    return f"{metrics['mb_s']:.0f} MB/s, {metrics['cpu_s_gb']:.2f} CPU s/GB"


def _one(metrics: Metrics) -> str:
    return f"{_ms(metrics['p50_ms'])} / {_ms(metrics['p99_ms'])}"


def _kib(metrics: Metrics) -> str:
    return f"{metrics['kib']:.1f} KiB"


def _visitors(metrics: Metrics) -> str:
    return f"{_kib(metrics)}, with HTTP/2 {metrics['h2_kib']:.1f} KiB"


def _stall(metrics: Metrics) -> str:
    p99 = f"p99 {_ms(metrics['before_p99_ms'])} → {_ms(metrics['during_p99_ms'])}"
    size = f"memory +{metrics['growth_mib']:.1f} MiB, files {metrics['spooled_mib']:.0f} MiB"
    return f"{p99}, {size}{_failed(metrics)}"


def _mixed(metrics: Metrics) -> str:
    p99 = f"p99 {_ms(metrics['alone_p99_ms'])} → {_ms(metrics['beside_p99_ms'])}"
    return f"{p99} beside {metrics['beside_mb_s']:.0f} MB/s{_failed(metrics)}"


def _failed(metrics: Metrics) -> str:
    """A p99 hides a few of them."""
    return f", {metrics['failed']:.0f} requests failed" if metrics["failed"] else ""


def _storm(metrics: Metrics) -> str:
    calls = f"{metrics['calls']:.0f} visitors meanwhile, {metrics['failed_calls']:.0f} failed"
    calls += f", p50 {_ms(metrics['call_p50_ms'])}, p99 {_ms(metrics['call_p99_ms'])}"
    size = f"{metrics['cpu_s']:.1f} CPU s, {metrics['back_mib']:.0f} MiB"
    return f"{metrics['agents']:.0f} back in {metrics['back_s']:.1f} s, {size}; {calls}"


def _websockets(metrics: Metrics) -> str:
    idle = (
        f"{metrics['cpu_percent']:.1f} % CPU, {metrics['growth_mib']:+.1f} MiB in {metrics['seconds']:.0f} s"
    )
    return f"{metrics['held']:.0f} held, {metrics['kib']:.1f} KiB each, {idle}"


def _soak(metrics: Metrics) -> str:
    size = f"{metrics['early_mib']:.1f} → {metrics['late_mib']:.1f} MiB"
    load = f"{metrics['requests'] / 1000:.0f}k requests in {metrics['seconds'] / 60:.1f} min"
    download = f"a download at {metrics['download_mb_s']:.0f} MB/s"
    return f"{size} ({metrics['slope_kib_min']:+.0f} KiB a minute), {load}, {download}"


def _ms(value: float) -> str:
    return f"{value * 1000:.0f} µs" if value < 1 else f"{value:.1f} ms"


# What "flat" leaves for the allocator, beside one MiB.
FLAT = 1.05

ROWS = (
    Row(
        "h1",
        "1 KiB, 50 kept HTTP/1.1 connections: edge CPU a request",
        ALL,
        Start.SHARED,
        _shared(speed.h1),
        _requests,
        (
            than("route", "cpu_us", "CPU", "nginx"),
            than("route", "rps", "rps", "haproxy,nginx", at_most=False),
            than("tunnel", "cpu_us", "CPU", "sshd", 0.75),
            than("tunnel", "rps", "rps", "sshd", 1.3, at_most=False),
            Goal("tunnel", "p99_ms", "p99", plus=10, unit="ms"),
        ),
    ),
    Row(
        "h2",
        "1 KiB, HTTP/2, 10 connections × 10 streams: edge CPU a request",
        ALL,
        Start.SHARED,
        _shared(speed.h2),
        _requests,
        (than("route", "cpu_us", "CPU", "haproxy"), than("tunnel", "cpu_us", "CPU", "sshd", 0.75)),
    ),
    Row(
        "handshake",
        "new TLS connection (whole handshake) + one request: edge CPU",
        ALL,
        Start.SHARED,
        _shared(speed.handshake),
        _cpu,
        (than("route", "cpu_us", "CPU", "nginx"),),
    ),
    Row(
        "resumed",
        "new TLS connection (resumed where the edge can) + one request: edge CPU",
        ALL,
        Start.SHARED,
        _shared(speed.resumed),
        _cpu,
        (than("route", "cpu_us", "CPU", "nginx"),),
    ),
    Row(
        "bulk1",
        "256 MiB down, one stream",
        ALL,
        Start.SHARED,
        _shared(speed.bulk(1, repeat=2)),
        _bulk,
        (
            than("route", "mb_s", "MB/s", "haproxy", at_most=False),
            than("tunnel", "mb_s", "MB/s", "sshd", 1.3, at_most=False),
            than("tunnel", "cpu_s_gb", "CPU", "sshd", 0.5),
        ),
    ),
    Row(
        "bulk4",
        "256 MiB down, four streams",
        ALL,
        Start.SHARED,
        _shared(speed.bulk(4, repeat=1)),
        _bulk,
    ),
    Row(
        "one",
        "one visitor, one request at a time: p50 / p99",
        ALL,
        Start.SHARED,
        _shared(speed.one),
        _one,
        (than("tunnel", "p50_ms", "p50", "sshd", 0.8), Goal("tunnel", "p99_ms", "p99", plus=2, unit="ms")),
    ),
    Row(
        "agents",
        "an idle agent with one tunnel: edge memory",
        TUNNELS,
        Start.OWN,
        memory.agents,
        _kib,
        (Goal("tunnel", "kib", "memory", plus=48, unit="KiB"),),
    ),
    Row(
        "visitors",
        "an idle kept visitor connection: edge memory",
        ALL,
        Start.OWN,
        memory.visitors,
        _visitors,
        (Goal("route", "kib", "memory", rivals=(("nginx", "kib"),), plus=8, unit="KiB"),),
    ),
    Row(
        "stall",
        f"{fairness.STALLED} stalled downloads: others' small requests before → during",
        TUNNELS,
        Start.OWN,
        fairness.stall,
        _stall,
        (
            Goal(
                "tunnel",
                "during_p99_ms",
                "p99",
                rivals=(("tunnel", "before_p99_ms"),),
                factor=1.5,
                plus=20,
                unit="ms",
            ),
            Goal("tunnel", "growth_mib", "memory growth", plus=16, unit="MiB"),
            Goal("tunnel", "left_mib", "files left afterwards", plus=0, unit="MiB"),
        ),
    ),
    Row(
        "mixed",
        "small requests alone → beside a download on the same agent",
        TUNNELS,
        Start.OWN,
        fairness.mixed,
        _mixed,
        (Goal("tunnel", "added_ms", "added p99", plus=10, unit="ms"),),
    ),
    Row(
        "storm",
        "the gateway is killed under its agents and started again",
        ("tunnel",),
        Start.ONCE,
        storm.storm,
        _storm,
        (
            Goal("tunnel", "back_s", "all back", plus=15, unit="s"),
            Goal("tunnel", "failed_calls", "failed visitors", plus=0),
        ),
    ),
    Row(
        "websockets",
        "idle WebSockets, held",
        ("tunnel",),
        Start.ONCE,
        memory.websockets,
        _websockets,
        (Goal("tunnel", "growth_mib", "growth", plus=1, unit="MiB"),),
    ),
    Row(
        "soak",
        "a steady mixed load: edge memory in the third quarter of the time → in the last",
        ("tunnel",),
        Start.ONCE,
        memory.soak,
        _soak,
        (
            Goal(
                "tunnel",
                "late_mib",
                "memory in the last quarter",
                rivals=(("tunnel", "early_mib"),),
                factor=FLAT,
                plus=1,
                unit="MiB",
            ),
        ),
    ),
)
