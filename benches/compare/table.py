"""What a person sees: one table, as text on the terminal and as Markdown in the README."""

import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from .edge import Stack
from .procs import BenchError
from .rows import Row
from .verdict import Figures, Verdict

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
MARKS = {True: "✓", False: "✗", None: "–"}


def as_text(rows: Iterable[Row], stacks: Sequence[Stack], figures: Figures) -> str:
    """A block a row: what each stack has, then the goals."""
    width = max(len(stack.title) for stack in stacks)
    lines = []
    for row in rows:
        shown = [stack for stack in stacks if _measured(row, stack, figures)]
        if not shown:
            continue
        lines.append(row.title)
        lines += [f"    {stack.title:<{width}}  {_cell(row, stack, figures)}" for stack in shown]
        lines += [
            f"    {MARKS[verdict.reached]} {verdict.text}" for verdict in _verdicts(row, shown, figures)
        ]
        lines.append("")
    return "\n".join(lines)


def as_markdown(
    rows: Iterable[Row], stacks: Sequence[Stack], figures: Figures, about: dict[str, object]
) -> str:
    """The table with its date, its machine and the versions."""
    columns = [stack for stack in stacks if any(_measured(row, stack, figures) for row in rows)]
    head = ["work", *(stack.title for stack in columns), "reached"]
    lines = [_line(head), "|" + "---|" * len(head)]
    for row in rows:
        shown = [stack for stack in columns if _measured(row, stack, figures)]
        if not shown:
            continue
        cells = [_cell(row, stack, figures) if stack in shown else "–" for stack in columns]
        verdicts = [f"{MARKS[one.reached]} {one.text}" for one in _verdicts(row, shown, figures)]
        lines.append(_line([row.title, *cells, "<br>".join(verdicts)]))
    return "\n".join([sentence(about), "", *lines])


def sentence(about: dict[str, object]) -> str:
    """Where and how it was measured, in words."""
    machine, versions, scale = about["machine"], about["versions"], about["scale"]
    place = "{cpu}, {cores} cores, {memory_gib} GiB, Linux {kernel}, {system}".format(**machine)
    programs = ", ".join(f"{name} {version}" for name, version in versions.items())
    rounds = f"Medians of {scale['rounds']} rounds" if scale["rounds"] > 1 else "One round"
    text = f"{rounds}, {about['date']}: {place}; clients, backend and edge share it. {programs}."
    return "\n".join(textwrap.wrap(text, 110, break_long_words=False, break_on_hyphens=False))


def into_readme(path: Path, text: str) -> None:
    """Replaces what is between the markers."""
    readme = path.read_text()
    if BEGIN not in readme or END not in readme:
        raise BenchError(f"`{path}` has no `{BEGIN}` and `{END}` to put the table between; add them")
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    path.write_text(re.sub(pattern, lambda _: f"{BEGIN}\n{text}\n{END}", readme, count=1, flags=re.DOTALL))


def _verdicts(row: Row, shown: Sequence[Stack], figures: Figures) -> list[Verdict]:
    keys = {stack.key for stack in shown}
    return [figures.judge(row, goal) for goal in row.goals if goal.stack in keys]


def _measured(row: Row, stack: Stack, figures: Figures) -> bool:
    key = (row.key, stack.key)
    return key in figures.rounds or key in figures.failures


def _cell(row: Row, stack: Stack, figures: Figures) -> str:
    medians = figures.medians(row.key, stack.key)
    return row.cell(medians) if medians else "FAILED: " + _plain(figures.failures[row.key, stack.key])


def _plain(text: str) -> str:
    """One short line, which breaks no table."""
    return textwrap.shorten(text.replace("|", "/"), 160, placeholder=" …")


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
