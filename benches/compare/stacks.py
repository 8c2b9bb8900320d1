"""The stacks that are compared, in the order of the table."""

from .edge import Stack
from .ours import OneportRoute, OneportTunnel
from .rivals import HaproxyRoute, NginxRoute, OldTunnel, SshdTunnel

STACKS = (HaproxyRoute, NginxRoute, OneportRoute, SshdTunnel, OneportTunnel)


def chosen(keys: list[str] | None, old: str | None) -> list[Stack]:
    """Those with these keys (all, where none are given), and the old server where there is one."""
    stacks: list[Stack] = [stack() for stack in STACKS if keys is None or stack.key in keys]
    return stacks + ([OldTunnel(old)] if old else [])
