"""From rounds to figures: medians, ratios to rivals, and whether a goal is reached.

A ratio is taken within a round and only then its median over the rounds, so that the machine's
good and bad minutes cancel out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from .rounds import Result
from .rows import Goal, Row


@dataclass(frozen=True)
class Verdict:
    """A goal and how it stands; `reached` is None where something that it needs was not measured."""

    row: str
    stack: str
    text: str
    reached: bool | None
    value: float | None = None
    limit: float | None = None


class Figures:
    """The results, by row and stack."""

    def __init__(self, results: Sequence[Result]):
        self.rounds: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
        self.failures: dict[tuple[str, str], str] = {}
        for result in results:
            key = (result.row, result.stack)
            if result.failed is None:
                self.rounds.setdefault(key, {})[result.round] = result.metrics
            else:
                self.failures[key] = f"round {result.round}: {result.failed}"

    def medians(self, row: str, stack: str) -> dict[str, float] | None:
        """None where a row was not measured, or failed in any round."""
        key = (row, stack)
        if key in self.failures or key not in self.rounds:
            return None
        rounds = list(self.rounds[key].values())
        return {metric: median(one[metric] for one in rounds) for metric in rounds[0]}

    def judge(self, row: Row, goal: Goal) -> Verdict:
        """How a goal stands."""
        title = f"{goal.stack}: {goal.label}"
        if (row.key, goal.stack) in self.failures:
            return Verdict(row.key, goal.stack, f"{title} failed", False)
        pairs = self._pairs(row.key, goal)
        if not pairs:
            return Verdict(row.key, goal.stack, f"{title} not measured", None)
        value = median(value for value, _ in pairs)
        sign = "≤" if goal.at_most else "≥"
        if goal.rivals and not goal.plus:
            # A pure ratio.
            value = median(value / rival if rival else float("inf") for value, rival in pairs)
            limit = goal.factor
            names = "/".join(dict.fromkeys(rival for rival, _ in goal.rivals))
            text = f"{title} {value:.2f} × {names} ({sign} {limit:g})"
        else:
            limit = median(goal.factor * rival + goal.plus for _, rival in pairs)
            text = f"{title} {_short(value)} {goal.unit}".rstrip() + f" ({sign} {_short(limit)})"
        reached = value <= limit if goal.at_most else value >= limit
        return Verdict(row.key, goal.stack, text, reached, value, limit)

    def _pairs(self, row: str, goal: Goal) -> list[tuple[float, float]]:
        """Of each round the value, and the best rival's (0 where the goal has none)."""
        pairs = []
        for number, metrics in self.rounds.get((row, goal.stack), {}).items():
            rivals = []
            for stack, metric in goal.rivals:
                other = self.rounds.get((row, stack), {}).get(number)
                if other is None or (row, stack) in self.failures:
                    return []
                rivals.append(other[metric])
            best = (min if goal.at_most else max)(rivals, default=0.0)
            pairs.append((metrics[goal.metric], best))
        return pairs


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.1f}"
