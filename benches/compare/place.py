"""The temporary folder of a run: certificates, keys, and what the backend serves."""

import getpass
import os
import shutil
import tempfile
from pathlib import Path

from .procs import BenchError, run

DOMAIN = "gw.test"
SMALL, BIG = "/small", "/big"
SMALL_BYTES, BIG_BYTES = 1024, 256 << 20


class Place:
    """Makes everything once. Use it in a `with`: nothing stays."""

    def __init__(self, root: Path):
        self.folder = Path(tempfile.mkdtemp(prefix="oneport-bench-"))
        self.oneport = root / "target/release/oneport"
        self.swarm = root / "target/release/examples/swarm"
        self.user = getpass.getuser()
        self.ca, self.cert, self.key = (self.path(name) for name in ("ca.pem", "cert.pem", "key.pem"))
        self.host_key, self.agent_key = self.path("host"), self.path("agent")

    def __enter__(self) -> "Place":
        self._certificates()
        for key in (self.host_key, self.agent_key):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        self._files()
        # Makes wrk ask for the URL's host, by SNI and in `Host`, but connect to loopback: it has
        # no `--connect-to`, and nothing outside this folder need be changed.
        self.path("loopback.lua").write_text(
            'function wrk.resolve(host, service)\n  wrk.addrs = wrk.lookup("127.0.0.1", service)\nend\n'
        )
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, text: str) -> str:
        """Writes a configuration; returns its path."""
        self.path(name).write_text(text)
        return str(self.path(name))

    def _certificates(self) -> None:
        """An authority, and a certificate of it (P-256) for the domain and all names below it."""
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        run(
            *("openssl", "req", "-x509", *curve, "-days", "30", "-subj", "/CN=bench authority"),
            *("-keyout", str(self.path("ca.key")), "-out", str(self.ca)),
        )
        run(
            *("openssl", "req", *curve, "-subj", f"/CN={DOMAIN}"),
            *("-keyout", str(self.key), "-out", str(self.path("leaf.csr"))),
        )
        names = f"subjectAltName=DNS:{DOMAIN},DNS:*.{DOMAIN}\nbasicConstraints=CA:FALSE\n"
        run(
            *("openssl", "x509", "-req", "-days", "30", "-in", str(self.path("leaf.csr"))),
            *("-extfile", self.write("leaf.ext", names), "-out", str(self.cert)),
            *("-CA", str(self.ca), "-CAkey", str(self.path("ca.key")), "-CAcreateserial"),
        )
        # HAProxy wants both in one file.
        self.write("both.pem", self.cert.read_text() + self.key.read_text())

    def _files(self) -> None:
        www = self.path("www")
        www.mkdir()
        (www / SMALL[1:]).write_bytes(b"x" * SMALL_BYTES)
        if shutil.disk_usage(self.folder).free < 16 * BIG_BYTES:
            raise BenchError(
                f"`{self.folder}` has less than 4 GiB free; set TMPDIR to a folder that has more"
            )
        block = os.urandom(1 << 20)
        with open(www / BIG[1:], "wb") as big:
            for _ in range(BIG_BYTES >> 20):
                big.write(block)
