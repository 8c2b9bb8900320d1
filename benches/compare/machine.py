"""What the machine says: processor time and memory of processes, free ports, what it is.

All of it is read from `/proc`, so a figure belongs to the processes it is asked for and not to
whatever else runs.
"""

import os
import platform
import resource
import socket
import stat
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def raise_descriptor_limit() -> int:
    """Thousands of connections need descriptors. Children inherit the limit, which is returned."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listened on just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def family(roots: Iterable[int]) -> list[int]:
    """The processes `roots` and all their descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found, todo = [], list(roots)
    while todo:
        one = todo.pop()
        found.append(one)
        todo += children.get(one, [])
    return found


def started(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; with its number it is unique."""
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] != "Z" else None


def cpu_seconds(roots: Iterable[int]) -> float:
    """Processor time that the family has used, children that have ended included."""
    ticks = 0
    for one in family(roots):
        if fields := _stat(one):
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / TICKS


def pss_kib(roots: Iterable[int]) -> int:
    """Proportional set size: what several processes share counts once."""
    total = 0
    for one in family(roots):
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total


def settled_pss_kib(roots: Iterable[int], rest: float = 2, limit: float = 15) -> int:
    """Waits until the memory has hardly changed for `rest` seconds, so that every edge has had time to
    give back what it does give back; what it is at the latest after `limit` seconds."""
    roots, now = list(roots), time.monotonic()
    end, since, size = now + limit, now, pss_kib(roots)
    while now < end and now - since < rest:
        time.sleep(0.25)
        now, seen = time.monotonic(), pss_kib(roots)
        if abs(seen - size) > size // 500:
            since, size = now, seen
    return pss_kib(roots)


def spooled_bytes(roots: Iterable[int]) -> int:
    """Room on disk that is taken by files without a name, which the family holds open."""
    total, seen = 0, set()
    for one in family(roots):
        try:
            entries = os.listdir(f"/proc/{one}/fd")
        except OSError:
            continue
        for entry in entries:
            try:
                about = os.stat(f"/proc/{one}/fd/{entry}")
            except OSError:
                continue
            key = (about.st_dev, about.st_ino)
            if stat.S_ISREG(about.st_mode) and about.st_nlink == 0 and key not in seen:
                seen.add(key)
                total += about.st_blocks * 512
    return total


def written_bytes(pid: int) -> int:
    """What a process has written to files, `/dev/null` among them."""
    try:
        text = Path(f"/proc/{pid}/io").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("wchar:")), 0)


def describe() -> dict[str, object]:
    """Processor, cores, memory, kernel, system."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    memory = next(
        (int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0
    )
    system = next(
        (
            line.split("=", 1)[1].strip('"')
            for line in _lines("/etc/os-release")
            if line.startswith("PRETTY_NAME")
        ),
        platform.system(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**20),
        "kernel": platform.release(),
        "system": system,
    }


def version(*command: str, word: int) -> str:
    """One word of what a program says of its version; `?` where it says nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "?"
    words = (done.stdout + done.stderr).split()
    return words[word].strip(",;").removeprefix("nginx/") if len(words) > word else "?"


def _stat(pid: int) -> list[str] | None:
    """The fields of `/proc/PID/stat` behind the name, which may hold anything: state, parent, …"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
