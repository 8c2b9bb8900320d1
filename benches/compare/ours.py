"""oneport itself: a fixed route to the backend, and a tunnel."""

from collections.abc import Callable

from .agents import idle_swarm, web_agent
from .edge import WEB, Edge, Stack
from .place import DOMAIN
from .procs import Child


class OneportRoute(Stack):
    key, title = "route", "oneport route"

    def begin_edge(self, edge: Edge) -> None:
        start_oneport(edge, f'[[routes]]\nhost = "{WEB}"\nto = "http://127.0.0.1:{edge.backend}"\n')


class OneportTunnel(Stack):
    key, title = "tunnel", "oneport tunnel"

    def begin_edge(self, edge: Edge) -> None:
        start_oneport(edge)
        web_agent(edge)

    def idle_agents(self, edge: Edge, count: int) -> Callable[[], int]:
        return idle_swarm(edge, count).gone


def start_oneport(edge: Edge, more: str = "") -> None:
    """The rivals write no access log, so neither does oneport; limits that one client address
    would meet are out of the way, as they are in the rivals."""
    place = edge.place
    config = place.write(
        "oneport.toml",
        f"""base_url = "https://{DOMAIN}:{edge.port}"
listen = ["127.0.0.1:{edge.port}"]
state_dir = "{place.path("state")}"
drain_timeout = "1s"
[tls]
certificates = [{{ cert = "{place.cert}", key = "{place.key}" }}]
[ssh]
allow_any_key = true
[limits]
connections_per_address = 20000
[log]
filter = "warn"
{more}""",
    )

    def begin() -> Child:
        child = edge.children.start("oneport", str(place.oneport), "serve", "--config", config)
        child.listens(edge.port)
        return child

    edge.begin = begin
    edge.processes = [begin()]
