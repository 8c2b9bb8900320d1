"""Does the work: round by round, and in each round one stack after another, so that a slow
minute of the machine hits all of them."""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from . import speed
from .edge import Stack
from .place import Place
from .procs import BenchError, Children
from .rows import Row, Start
from .scale import Scale


@dataclass(frozen=True)
class Result:
    """What one row gave on one stack in one round: metrics, or why there are none."""

    round: int
    stack: str
    row: str
    metrics: dict[str, float]
    failed: str | None = None


def run(place: Place, stacks: Sequence[Stack], rows: Sequence[Row], scale: Scale) -> Iterator[Result]:
    """All rounds; each result as soon as it is there."""
    for number in range(1, scale.rounds + 1):
        # An order of its own, so that none is always the first or after the same one; and the same
        # order in each run, so that runs can be compared.
        for stack in random.Random(number).sample(stacks, len(stacks)):
            mine = [row for row in rows if stack.key in row.stacks]
            shared = [row for row in mine if row.start is Start.SHARED]
            if shared:
                yield from _on_one_start(place, stack, shared, scale, number)
            for row in mine:
                if row.start is Start.OWN or (row.start is Start.ONCE and number == 1):
                    yield from _on_one_start(place, stack, [row], scale, number)


def _on_one_start(
    place: Place, stack: Stack, rows: Sequence[Row], scale: Scale, number: int
) -> Iterator[Result]:
    """Starts the stack for these rows. If that fails, all of them have."""
    with Children(place.folder) as children:
        try:
            edge = stack.start(place, children)
            if rows[0].start is Start.SHARED:
                speed.warm_up(edge, scale)
        except (OSError, BenchError) as error:
            for row in rows:
                yield Result(number, stack.key, row.key, {}, f"not started: {error}")
            return
        for row in rows:
            try:
                yield Result(number, stack.key, row.key, row.work(stack, edge, scale))
            except (OSError, BenchError) as error:
                yield Result(number, stack.key, row.key, {}, str(error) or type(error).__name__)
            # What a client leaves behind at its end is not the next row's.
            time.sleep(0.2)
