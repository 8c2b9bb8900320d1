"""The clients that drive every stack alike: wrk, h2load, curl, and a kept connection of our own.

An answer that is not the right one is an error, and a row with errors has no figure.
"""

import json
import re
import socket
import ssl
import statistics
import subprocess
import time
from collections.abc import Sequence

from . import machine
from .edge import Edge
from .place import BIG, BIG_BYTES, SMALL
from .procs import BenchError, run

TIMEOUT = 10.0
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}


def wrk(edge: Edge, connections: int, seconds: float, *headers: str) -> dict[str, float]:
    """Small requests on `connections` kept connections, as fast as they are answered."""
    text = run(
        *("wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "--timeout", "10s"),
        *("-s", str(edge.place.path("loopback.lua"))),
        *(part for header in headers for part in ("-H", header)),
        edge.url + SMALL,
        limit=seconds + 60,
        client=True,
    )
    if trouble := re.search(r"(Socket errors:|Non-2xx).*", text):
        raise BenchError(f"wrk: {trouble.group(0).strip()}")
    requests = int(_found(r"(\d+) requests in", text))
    if requests == 0:
        raise BenchError("wrk: not one request was answered")
    return {
        "requests": requests,
        "rps": float(_found(r"Requests/sec:\s+([\d.]+)", text)),
        "p50_ms": _milliseconds(_found(r"(?m)^\s+50%\s+(\S+)$", text)),
        "p99_ms": _milliseconds(_found(r"(?m)^\s+99%\s+(\S+)$", text)),
    }


def h2load(edge: Edge, seconds: float) -> dict[str, float]:
    """Small requests in 10 streams each on 10 kept HTTP/2 connections."""
    text = run(
        *(*_h2load(edge), "-c10", "-m10", f"-D{max(1, round(seconds))}", edge.url + SMALL),
        limit=seconds + 60,
        client=True,
    )
    if (protocol := _found(r"Application protocol: (\S+)", text)) != "h2":
        raise BenchError(f"h2load: the protocol is `{protocol}`, not h2")
    requests = _h2load_requests(text)
    return {"requests": requests, "rps": requests / max(1, round(seconds))}


def handshakes(edge: Edge, seconds: float, rate: int = 400) -> dict[str, float]:
    """New connections, each with a whole handshake and one request, at a steady rate: h2load, unlike
    wrk, never resumes a TLS session."""
    count = max(1, round(rate * seconds))
    period = ("-r", str(rate // 100), "--rate-period", "10ms")
    text = run(
        *(*_h2load(edge), "--h1", f"-n{count}", f"-c{count}", *period, edge.url + SMALL),
        limit=seconds + 60,
        client=True,
    )
    if (requests := _h2load_requests(text)) != count:
        raise BenchError(f"h2load: {requests} of {count} requests were answered")
    return {"requests": requests}


def downloads(edge: Edge, streams: int, repeat: int = 1) -> dict[str, float]:
    """The big file, by `streams` curls at a time, each `repeat` times one after another."""
    command = _curl(edge) + ["-w", "%{json}\n"] + [edge.url + BIG, "-o", "/dev/null"] * repeat
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(streams)]
    try:
        texts = [one.communicate(timeout=180)[0] for one in started]
    except subprocess.TimeoutExpired:
        raise BenchError("curl: a download did not end within 180 s") from None
    finally:
        for one in started:
            one.kill()
            one.wait()
    seconds = []
    for text in texts:
        told = [json.loads(line) for line in text.splitlines()]
        if len(told) != repeat or any(
            (one["http_code"], one["size_download"]) != (200, BIG_BYTES) for one in told
        ):
            got = [(one["http_code"], one["size_download"], one.get("errormsg")) for one in told]
            raise BenchError(f"curl: a download is not whole: {got}")
        seconds.append(sum(one["time_total"] for one in told))
    bytes_ = streams * repeat * BIG_BYTES
    return {"bytes": bytes_, "mb_s": bytes_ / max(seconds) / 1e6}


class Endless:
    """One curl that downloads the big file again and again while the `with` lasts, at most at
    `rate` octets a second (as curl writes them) where that is given. A download that fails, or one
    that hardly moves, is an error."""

    # Octets a second that are the least; without them there was no download beside.
    LEAST = 1e6

    def __init__(self, edge: Edge, rate: str | None = None):
        limit = ["--limit-rate", rate] if rate else []
        command = _curl(edge) + limit + ["-S", "--fail-early", "-f"]
        command += [edge.url + BIG, "-o", "/dev/null"] * 1000
        self.octets, self.seconds, self.begun = 0, 0.0, time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> "Endless":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        ended = self.process.poll()
        if ended is None:
            self.octets = machine.written_bytes(self.process.pid)
        self.seconds = time.monotonic() - self.begun
        self.process.kill()
        said = self.process.communicate()[1].strip()
        if kind is not None:
            return
        if ended is not None:
            raise BenchError(f"curl: the download beside ended with {ended}: {said}")
        if self.octets < self.LEAST * self.seconds:
            raise BenchError(f"curl: the download beside moved {self.octets} octets in {self.seconds:.1f} s")

    @property
    def mb_s(self) -> float:
        """How fast it was, once the `with` is over."""
        return self.octets / self.seconds / 1e6


class Visitor:
    """One kept HTTP/1.1 connection, without Nagle's delay."""

    ALPN = "http/1.1"

    def __init__(self, edge: Edge, host: str | None = None, receive_buffer: int | None = None):
        self.host = host or edge.host
        raw = socket.socket()
        raw.settimeout(TIMEOUT)
        if receive_buffer:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            raw.connect(("127.0.0.1", edge.port))
            self.tls = context(edge, self.ALPN).wrap_socket(raw, server_hostname=self.host)
        except OSError:
            raw.close()
            raise
        self.rest = b""

    def ask(self, path: str, *headers: str) -> None:
        lines = [f"GET {path} HTTP/1.1", f"Host: {self.host}", *headers, "", ""]
        self.tls.sendall("\r\n".join(lines).encode())

    def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers, their names in lower case."""
        while b"\r\n\r\n" not in self.rest:
            self._more()
        head, self.rest = self.rest.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
        return int(first.split()[1]), headers

    def get(self, path: str = SMALL) -> float:
        """Milliseconds for one request and its whole answer."""
        begun = time.perf_counter()
        self.ask(path)
        status, headers = self.head()
        length = int(headers.get("content-length", "0"))
        while len(self.rest) < length:
            self._more()
        self.rest = self.rest[length:]
        if status != 200:
            raise BenchError(f"answered with {status}")
        return (time.perf_counter() - begun) * 1e3

    def close(self) -> None:
        self.tls.close()

    def _more(self) -> None:
        if not (part := self.tls.recv(65536)):
            raise BenchError("the connection was closed in the middle of an answer")
        self.rest += part


class H2Visitor(Visitor):
    """One kept HTTP/2 connection with as much of RFC 9113 as a small request needs."""

    ALPN = "h2"
    DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7
    # Of DATA and HEADERS; of SETTINGS and PING; of HEADERS.
    END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4

    def __init__(self, edge: Edge, host: str | None = None):
        super().__init__(edge, host)
        self.stream = -1
        if (spoken := self.tls.selected_alpn_protocol()) != "h2":
            self.close()
            raise BenchError(f"the protocol is `{spoken}`, not h2")
        self.tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + self._frame(self.SETTINGS))

    def get(self, path: str = SMALL) -> float:
        begun = time.perf_counter()
        self.stream += 2
        # HPACK (RFC 7541): GET and https are indexed, path and authority literal under their names.
        fields = b"\x82\x87" + b"".join(
            bytes((name, len(value))) + value.encode() for name, value in ((4, path), (1, self.host))
        )
        self.tls.sendall(self._frame(self.HEADERS, self.END_STREAM | self.END_HEADERS, self.stream, fields))
        while not self._answered():
            pass
        return (time.perf_counter() - begun) * 1e3

    def _answered(self) -> bool:
        """Reads a frame; whether it was the last of the answer."""
        while len(self.rest) < 9 or len(self.rest) < 9 + int.from_bytes(self.rest[:3]):
            self._more()
        length, kind, flags = int.from_bytes(self.rest[:3]), self.rest[3], self.rest[4]
        stream, payload = int.from_bytes(self.rest[5:9]), self.rest[9 : 9 + length]
        self.rest = self.rest[9 + length :]
        if kind in (self.RST_STREAM, self.GOAWAY):
            raise BenchError(f"answered with frame {kind} and `{payload.hex()}`")
        if kind in (self.SETTINGS, self.PING) and not flags & self.ACK:
            self.tls.sendall(self._frame(kind, self.ACK, 0, payload if kind == self.PING else b""))
        # A change of the table's size may come first; then `:status` 200 is always this one octet.
        if kind == self.HEADERS and not re.match(rb"[\x20-\x3f]*\x88", payload):
            raise BenchError(f"answered with other than 200: `{payload[:16].hex()}`")
        return stream == self.stream and kind in (self.DATA, self.HEADERS) and bool(flags & self.END_STREAM)

    @staticmethod
    def _frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
        return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


_CONTEXTS: dict[tuple[str, str], ssl.SSLContext] = {}


def context(edge: Edge, alpn: str) -> ssl.SSLContext:
    """Verifies the stack's certificate. One for all: a new one would read the authority each time."""
    key = (str(edge.place.ca), alpn)
    if key not in _CONTEXTS:
        made = ssl.create_default_context(cafile=key[0])
        made.set_alpn_protocols([alpn])
        _CONTEXTS[key] = made
    return _CONTEXTS[key]


def percentile(values: Sequence[float], hundredth: int) -> float:
    """The value below which so many hundredths lie."""
    if len(values) < 2:
        raise BenchError("too few requests were answered")
    return statistics.quantiles(values, n=100, method="inclusive")[hundredth - 1]


def _h2load(edge: Edge) -> tuple[str, ...]:
    return ("h2load", "-t1", f"--connect-to=127.0.0.1:{edge.port}")


def _h2load_requests(text: str) -> int:
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", text)
    codes = re.search(r"status codes: \d+ 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", text)
    if not counts or not codes:
        raise BenchError(f"h2load: no figures in `{text[-400:].strip()}`")
    if any(int(count) for count in (*counts.groups()[1:], *codes.groups())):
        raise BenchError(f"h2load: {counts.group(0)}; {codes.group(0)}")
    if int(counts.group(1)) == 0:
        raise BenchError("h2load: not one request was answered")
    return int(counts.group(1))


def _curl(edge: Edge) -> list[str]:
    resolve = f"{edge.host}:{edge.port}:127.0.0.1"
    return ["curl", "-s", "--http1.1", "--cacert", str(edge.place.ca), "--resolve", resolve]


def _found(pattern: str, text: str) -> str:
    if not (match := re.search(pattern, text)):
        raise BenchError(f"no `{pattern}` in `{text[-400:].strip()}`")
    return match.group(1)


def _milliseconds(text: str) -> float:
    match = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    if not match:
        raise BenchError(f"`{text}` is not a time")
    return float(match.group(1)) * UNITS[match.group(2)]
