"""How much of everything a run does."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Seconds where nothing else is said. Few are enough for ratios; the medians do the rest."""

    rounds: int = 3
    seconds: float = 3
    warm_agents: int = 10
    agents: int = 200
    # An OpenSSH client, an openssl and two processes of sshd each: more would measure the machine.
    heavy_agents: int = 50
    warm_visitors: int = 100
    visitors: int = 1000
    # Of the small requests beside stalled downloads.
    stalled: float = 10
    storm: int = 2000
    websockets: int = 1000
    hold: float = 60
    soak: float = 120


QUICK = Scale(
    rounds=1,
    seconds=1,
    agents=50,
    heavy_agents=10,
    visitors=200,
    stalled=4,
    storm=200,
    websockets=100,
    hold=5,
    soak=10,
)
