"""What people would otherwise run, and how it is configured: as its makers and Debian have it,
without an access log, and with room for all the connections."""

import os
from collections.abc import Callable
from contextlib import suppress

from . import machine
from .agents import idle_swarm, ssh_agent, web_agent
from .edge import CORES, Edge, Stack, nginx_folders, nginx_user
from .place import DOMAIN
from .procs import BenchError

# sshd does not start as root without it; Debian's service makes it.
SSHD_FOLDER = "/run/sshd"

HAPROXY = f"""global
  maxconn 8000
  nbthread {CORES}
  tune.ssl.cachesize 20000
  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256
defaults
  timeout connect 5s
  timeout client 600s
  timeout server 600s
"""


class HaproxyRoute(Stack):
    key, title = "haproxy", "HAProxy → backend"

    def begin_edge(self, edge: Edge) -> None:
        config = f"""{HAPROXY}
frontend edge
  mode http
  bind 127.0.0.1:{edge.port} ssl crt {edge.place.path("both.pem")} alpn h2,http/1.1
  option forwardfor
  default_backend service
backend service
  mode http
  http-reuse always
  server s 127.0.0.1:{edge.backend}
"""
        start_haproxy(edge, config)


class NginxRoute(Stack):
    key, title = "nginx", "nginx → backend"

    def begin_edge(self, edge: Edge) -> None:
        # TLS versions as Debian's own nginx.conf has them, less the two that nobody speaks any more.
        config = f"""daemon off; worker_processes {CORES}; {nginx_user()} pid {edge.place.path("edge.pid")};
events {{ worker_connections 8192; }}
http {{ access_log off; keepalive_requests 100000000; {nginx_folders(edge.place)}
  upstream service {{ server 127.0.0.1:{edge.backend}; keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{edge.port} ssl http2 backlog=4096;
    ssl_certificate {edge.place.cert}; ssl_certificate_key {edge.place.key};
    ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:s:10m;
    location / {{
      proxy_pass http://service; proxy_http_version 1.1; proxy_max_temp_file_size 0;
      proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }}
  }}
}}
"""
        written = edge.place.write("nginx.conf", config)
        child = edge.children.start("nginx", "nginx", "-e", "stderr", "-c", written)
        child.listens(edge.port)
        edge.processes = [child]


class SshdTunnel(Stack):
    key, title, heavy_agents = "sshd", "HAProxy + sshd tunnel", True

    def begin_edge(self, edge: Edge) -> None:
        place, (ssh, web) = edge.place, machine.free_ports(2)
        if os.geteuid() == 0 and not os.path.exists(SSHD_FOLDER):
            os.mkdir(SSHD_FOLDER, 0o755)
            edge.children.afterwards.append(_remove_sshd_folder)
        keys = place.write("authorized_keys", place.agent_key.with_suffix(".pub").read_text())
        config = place.write(
            "sshd_config",
            f"""ListenAddress 127.0.0.1:{ssh}
HostKey {place.host_key}
AuthorizedKeysFile {keys}
StrictModes no
PidFile none
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 4000
MaxSessions 4000
""",
        )
        sshd = edge.children.start("sshd", program("sshd"), "-D", "-e", "-f", config)
        sshd.listens(ssh)
        start_haproxy(edge, HAPROXY + haproxy_by_alpn(edge, ssh, web))
        edge.processes.append(sshd)
        agent = ssh_agent(edge, f"127.0.0.1:{web}:127.0.0.1:{edge.backend}", user=place.user)
        agent.listens(web)

    def idle_agents(self, edge: Edge, count: int) -> Callable[[], int]:
        forward = f"127.0.0.1:0:127.0.0.1:{edge.backend}"
        agents = [ssh_agent(edge, forward, user=edge.place.user) for _ in range(count)]
        for agent in agents:
            agent.said("Allocated port", limit=60)
        return lambda: sum(agent.process.poll() is not None for agent in agents)


class OldTunnel(Stack):
    """The server that oneport's agents were made for, if the person has one: a shell command, which
    gets the variables that such a server is configured by."""

    key, title = "old", "old tunnel server"

    def __init__(self, command: str):
        self.command = command

    def begin_edge(self, edge: Edge) -> None:
        plain, ssh = machine.free_ports(2)
        environment = {
            "BASE_URL": f"https://{DOMAIN}:{edge.port}",
            "PORT": str(plain),
            "SSH_PORT": str(ssh),
            "TLS_PORT": str(edge.port),
            "SSH_HOST_KEY_PATH": str(edge.place.host_key),
            "TLS_CERT_FILE": str(edge.place.cert),
            "TLS_KEY_FILE": str(edge.place.key),
            "COOKIE_SECRETS": "bench",
            "ONEPORT_SSH_ALLOW_ANY_KEY": "true",
        }
        child = edge.children.start("old", "sh", "-c", f"exec {self.command}", env=environment)
        child.listens(edge.port, limit=60)
        edge.processes = [child]
        web_agent(edge)

    def idle_agents(self, edge: Edge, count: int) -> Callable[[], int]:
        return idle_swarm(edge, count).gone


def haproxy_by_alpn(edge: Edge, ssh: int, web: int) -> str:
    """One port, and one pass through HAProxy: ALPN `ssh` to sshd as it is, the rest read as HTTP."""
    return f"""
frontend edge
  mode tcp
  bind 127.0.0.1:{edge.port} ssl crt {edge.place.path("both.pem")} alpn h2,http/1.1,ssh
  tcp-request content switch-mode http if !{{ ssl_fc_alpn ssh }}
  use_backend agents if {{ ssl_fc_alpn ssh }}
  default_backend service
backend agents
  mode tcp
  server s 127.0.0.1:{ssh}
backend service
  mode http
  option forwardfor
  http-reuse always
  server s 127.0.0.1:{web}
"""


def start_haproxy(edge: Edge, config: str) -> None:
    child = edge.children.start("haproxy", "haproxy", "-db", "-f", edge.place.write("haproxy.cfg", config))
    child.listens(edge.port)
    edge.processes = [child]


def _remove_sshd_folder() -> None:
    with suppress(OSError):
        os.rmdir(SSHD_FOLDER)


def program(name: str) -> str:
    """sshd insists on being called by its whole path."""
    for folder in (*os.environ.get("PATH", "").split(":"), "/usr/sbin", "/sbin"):
        if folder and os.access(path := f"{folder}/{name}", os.X_OK):
            return path
    raise BenchError(f"`{name}` is not installed")
