"""Agents that lead from an edge to the backend: OpenSSH ones, and a swarm of light ones."""

import json
import re
import time

from .edge import Edge
from .place import DOMAIN
from .procs import BenchError, Child


def web_agent(edge: Edge, name: str = "web", backend: int | None = None) -> Child:
    """An OpenSSH agent that offers `/NAME`, and tells its public host."""
    agent = ssh_agent(edge, f"/{name}:127.0.0.1:{backend or edge.backend}", user="bench", command=("hello",))
    host = agent.said(rf'https://({re.escape(name)}-[^:/"]+)').group(1)
    if name == "web":
        edge.host = host
    return agent


def ssh_agent(edge: Edge, forward: str, user: str, command: tuple[str, ...] = ()) -> Child:
    """OpenSSH through TLS, the same way for every stack."""
    proxy = f"openssl s_client -quiet -alpn ssh -servername {DOMAIN} -connect 127.0.0.1:{edge.port}"
    options = (
        f"ProxyCommand={proxy}",
        "BatchMode=yes",
        "ExitOnForwardFailure=yes",
        "IdentitiesOnly=yes",
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
    )
    return edge.children.start(
        *("agent", "ssh", "-F", "/dev/null", "-T", "-i", str(edge.place.agent_key), "-R", forward),
        *(part for option in options for part in ("-o", option)),
        *(() if command else ("-N",)),
        *(f"{user}@{DOMAIN}", *command),
        client=True,
    )


def idle_swarm(edge: Edge, count: int) -> "Swarm":
    """Connects so many light agents, whose names no other swarm has."""
    swarm = Swarm(edge, count, name=f"idle{time.monotonic_ns()}")
    swarm.wait(count)
    return swarm


class Swarm:
    """Many agents in one process (`examples/swarm.rs`), and what it says of them."""

    def __init__(self, edge: Edge, count: int, name: str):
        self.child = edge.children.start(
            *("swarm", str(edge.place.swarm), "--agents", str(count), "--name", name),
            *("--gateway", f"127.0.0.1:{edge.port}", "--server-name", DOMAIN, "--ca", str(edge.place.ca)),
            *("--key", str(edge.place.agent_key), "--service", f"127.0.0.1:{edge.backend}"),
        )
        self.read = 0
        # How often an agent lost the gateway; those that came back count, too.
        self.lost = 0

    def news(self) -> list[dict]:
        """What was said since the last call."""
        with open(self.child.log, "rb") as log:
            log.seek(self.read)
            text = log.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.read += len(whole)
        if self.child.process.poll() is not None:
            raise BenchError(f"the swarm ended: {text[-800:].decode(errors='replace').strip()}")
        news = [json.loads(line) for line in whole.splitlines()]
        self.lost += sum(one.get("lost", 0) for one in news)
        return news

    def gone(self) -> int:
        """How many agents have lost the gateway by now."""
        self.news()
        return self.lost

    def wait(self, count: int, limit: float = 120) -> None:
        """Until so many agents are there."""
        end, last = time.monotonic() + limit, {}
        while last.get("connected") != count:
            if time.monotonic() > end:
                raise BenchError(
                    f"{count} agents are not there after {limit:.0f} s: {json.dumps(last)[:800]}"
                )
            time.sleep(0.05)
            last = next((news for news in reversed(self.news()) if "connected" in news), last)
