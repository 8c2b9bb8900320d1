"""A running edge, and what all stacks have in common."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from . import machine
from .place import DOMAIN, Place
from .procs import BenchError, Child, Children

CORES = os.cpu_count() or 1
WEB = f"web.{DOMAIN}"


@dataclass
class Edge:
    """A running stack."""

    place: Place
    children: Children
    port: int
    backend: int
    processes: list[Child] = field(default_factory=list)
    host: str = WEB
    begin: Callable[[], Child] | None = None

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in self.processes]

    @property
    def url(self) -> str:
        return f"https://{self.host}:{self.port}"

    def host_of(self, name: str) -> str:
        """The public host of another tunnel of the same agent key."""
        return f"{name}-{self.host.split('.')[0].rsplit('-', 1)[1]}.{DOMAIN}"

    def restart(self) -> None:
        """Kills the edge without a word and starts it again on the same port."""
        if self.begin is None or len(self.processes) != 1:
            raise BenchError("this stack cannot be restarted")
        self.processes[0].kill()
        self.processes = [self.begin()]


class Stack:
    """What all stacks have in common: the backend, and agents."""

    key: str
    title: str
    # Whether an idle agent is a burden to the machine, so that few of them have to do.
    heavy_agents = False

    def start(self, place: Place, children: Children) -> Edge:
        """Everything runs and answers when this returns."""
        port, backend = machine.free_ports(2)
        edge = Edge(place, children, port, backend)
        config = place.write(
            "backend.conf",
            f"""daemon off; worker_processes 1; {nginx_user()}
pid {place.path("backend.pid")}; events {{ worker_connections 8192; }}
http {{
  access_log off; sendfile on; keepalive_requests 100000000; keepalive_timeout 600s;
  {nginx_folders(place)}
  server {{ listen 127.0.0.1:{backend} backlog=4096; root {place.path("www")}; default_type text/plain; }}
}}
""",
        )
        children.start("backend", "nginx", "-e", "stderr", "-c", config).listens(backend)
        self.begin_edge(edge)
        return edge

    def begin_edge(self, edge: Edge) -> None:
        """Starts the edge, and the agent for `web`."""
        raise NotImplementedError

    def idle_agents(self, edge: Edge, count: int) -> Callable[[], int]:
        """Connects `count` more agents that hold one tunnel each and do nothing. What it returns
        says how many of them have lost the edge since."""
        raise NotImplementedError


def nginx_user() -> str:
    """Workers read a folder that only its owner may enter."""
    return "user root;" if os.geteuid() == 0 else ""


def nginx_folders(place: Place) -> str:
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return " ".join(f"{kind}_temp_path {place.path('nginx-' + kind)};" for kind in kinds)
