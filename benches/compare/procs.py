"""Programs that are started for a measurement, and that never outlive it."""

import ctypes
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from . import machine

PR_SET_PDEATHSIG = 1
# Says what OpenSSL is to ask for; meant for the clients (see `compare`).
OPENSSL_CONF = "OPENSSL_CONF"
LIBC = ctypes.CDLL(None)


class BenchError(Exception):
    """Something that makes a figure worthless, in words for a person."""


class Child:
    """A program that runs, and the file that holds what it says."""

    def __init__(self, name: str, process: subprocess.Popen, log: Path):
        self.name, self.process, self.log = name, process, log

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self, pattern: str, limit: float = 20) -> re.Match[str]:
        """Waits until the program has said something that matches."""
        end = time.monotonic() + limit
        while True:
            text = self.log.read_text(errors="replace")
            if match := re.search(pattern, text):
                return match
            if self.process.poll() is not None:
                raise BenchError(f"{self.name} ended with {self.process.returncode}: {text[-800:].strip()}")
            if time.monotonic() > end:
                raise BenchError(
                    f"{self.name} did not say `{pattern}` within {limit:.0f} s: {text[-800:].strip()}"
                )
            time.sleep(0.01)

    def listens(self, port: int, limit: float = 20) -> None:
        """Waits until somebody accepts on this port of loopback."""
        end = time.monotonic() + limit
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                text = self.log.read_text(errors="replace")
                if self.process.poll() is not None or time.monotonic() > end:
                    raise BenchError(
                        f"{self.name} does not listen on {port}: {text[-800:].strip()}"
                    ) from None
                time.sleep(0.01)

    def kill(self) -> None:
        """As the kernel does it when memory runs out: at once, no farewell."""
        self.process.kill()
        self.process.wait()


class Children:
    """Programs that end together, the last started first. Use it in a `with`."""

    def __init__(self, folder: Path):
        self.folder, self.running = folder, []
        # Called when all have ended.
        self.afterwards: list[Callable[[], None]] = []

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, *argv: str, env: dict[str, str] | None = None, client: bool = False) -> Child:
        """Starts a program that writes both its outputs to a log, and reads nothing. A `client` asks
        of OpenSSL what all clients do; a server has it as the system does."""
        log = self.folder / f"{name}-{time.monotonic_ns()}.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**(os.environ if client else _without_our_openssl()), **(env or {})},
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        child = Child(name, process, log)
        self.running.append(child)
        return child

    def stop(self, limit: float = 3) -> None:
        """Asks all to end, then makes them. Descendants that left the group are found by parent."""
        everybody = {pid: machine.started(pid) for pid in machine.family(child.pid for child in self.running)}
        for child in reversed(self.running):
            _signal_group(child.pid, signal.SIGTERM)
        end = time.monotonic() + limit
        for child in self.running:
            try:
                child.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal_group(child.pid, signal.SIGKILL)
                child.process.wait()
        for pid, started in everybody.items():
            # The number may be somebody else's by now.
            if started is not None and machine.started(pid) == started:
                _signal(pid, signal.SIGKILL)
        self.running.clear()
        while self.afterwards:
            self.afterwards.pop()()


def run(*argv: str, limit: float = 120, client: bool = False) -> str:
    """Runs a program to its end and returns what it said; an error holds its words. `client` is as
    in `Children.start`."""
    env = None if client else _without_our_openssl()
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=limit, check=False, env=env)
    except subprocess.TimeoutExpired:
        raise BenchError(f"`{argv[0]}` did not end within {limit:.0f} s") from None
    if done.returncode != 0:
        raise BenchError(
            f"`{argv[0]}` ended with {done.returncode}: {(done.stderr or done.stdout)[-800:].strip()}"
        )
    return done.stdout


def _without_our_openssl() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != OPENSSL_CONF}


def _die_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
