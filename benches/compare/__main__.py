"""Measures oneport beside what people would otherwise run, on this machine, all in one run:
Debian's HAProxy and nginx straight to the backend, and HAProxy with OpenSSH's sshd for tunnels.

Prints one table with ratios and what is to be reached, and writes every round to a JSON file.
docs/performance.md says how it is measured and how to read it.
"""

import argparse
import dataclasses
import datetime
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import machine, rounds, table
from .place import Place
from .procs import BenchError
from .rounds import Result
from .rows import ROWS, Row
from .scale import QUICK, Scale
from .stacks import STACKS, chosen
from .verdict import Figures

ROOT = Path(__file__).resolve().parents[2]
OLD = (
    "also measure the old tunnel server, which this shell command starts (with absolute paths); "
    "it gets BASE_URL, TLS_PORT and the other variables that such a server knows"
)
JSON = "target/bench/latest.json"


def main() -> int:
    """0 when everything was measured, 1 when a row failed; a goal that is missed is no failure."""
    options = parse(sys.argv[1:])
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    scale, stacks, rows = scale_of(options), chosen(options.stacks, options.old), rows_of(options)
    wanted = 4 * max(scale.storm, scale.visitors, scale.websockets)
    if (allowed := machine.raise_descriptor_limit()) < wanted:
        print(
            f"bench: {allowed} file descriptors may be too few; `ulimit -Hn {wanted}` allows more",
            file=sys.stderr,
        )
    results: list[Result] = []
    with Place(ROOT) as place:
        about = about_run(place, scale)
        for result in rounds.run(place, stacks, rows, scale):
            results.append(result)
            tell(result, scale)
            save(options.json, about, results, rows)
    figures = Figures(results)
    print("\n" + table.sentence(about) + "\n")
    print(table.as_text(rows, stacks, figures))
    print(f"every round: {options.json}")
    if options.readme:
        table.into_readme(ROOT / "README.md", table.as_markdown(rows, stacks, figures, about))
    return 1 if figures.failures else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line. Durations in seconds or minutes, as they say."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="./bench", description=__doc__, formatter_class=raw)
    parser.epilog = "rows:\n" + "\n".join(f"  {row.key:<11} {row.title}" for row in ROWS)
    parser.epilog += "\n\nstacks:\n" + "\n".join(f"  {stack.key:<11} {stack.title}" for stack in STACKS)

    def add(name: str, meaning: str, **more: object) -> None:
        parser.add_argument(name, help=meaning, **more)

    whole, number = positive(int), positive(float)
    add("--rounds", f"medians of so many (default {Scale.rounds})", metavar="N", type=whole)
    add("--seconds", f"of load for one figure (default {Scale.seconds})", metavar="N", type=number)
    add("--only", "only these rows", metavar="ROW,…", type=names({row.key for row in ROWS}))
    add("--stacks", "only these stacks", metavar="STACK,…", type=names({stack.key for stack in STACKS}))
    add("--minutes", "how long WebSockets are held (default 1)", metavar="N", type=number)
    add("--soak", "how long the steady load lasts (default 2)", metavar="MINUTES", type=number)
    add("--old", OLD, metavar="COMMAND")
    add("--quick", "one short round with few agents: shows that it works, no more", action="store_true")
    add(
        "--json",
        f"where every round is written (default {JSON})",
        metavar="FILE",
        type=Path,
        default=ROOT / JSON,
    )
    add(
        "--readme",
        f"put the table into README.md, between {table.BEGIN} and {table.END}",
        action="store_true",
    )
    return parser.parse_args(arguments)


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """An argument that is a number over 0."""

    def convert(text: str) -> float:
        if (value := kind(text)) <= 0:
            raise argparse.ArgumentTypeError(f"`{text}` is not over 0")
        return value

    convert.__name__ = "number"
    return convert


def names(known: set[str]) -> Callable[[str], list[str]]:
    """An argument that is a list of known names."""

    def convert(text: str) -> list[str]:
        picked = [name.strip() for name in text.split(",")]
        if unknown := [name for name in picked if name not in known]:
            raise argparse.ArgumentTypeError(f"`{unknown[0]}` is none of {', '.join(sorted(known))}")
        return picked

    return convert


def scale_of(options: argparse.Namespace) -> Scale:
    given = {
        "rounds": options.rounds,
        "seconds": options.seconds,
        "hold": options.minutes and options.minutes * 60,
        "soak": options.soak and options.soak * 60,
    }
    base = QUICK if options.quick else Scale()
    return dataclasses.replace(base, **{name: value for name, value in given.items() if value})


def rows_of(options: argparse.Namespace) -> list[Row]:
    return [row for row in ROWS if not options.only or row.key in options.only]


def about_run(place: Place, scale: Scale) -> dict[str, object]:
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine.describe(),
        "versions": {
            "oneport": machine.version(str(place.oneport), "--version", word=1),
            "HAProxy": machine.version("haproxy", "-v", word=2),
            "nginx": machine.version("nginx", "-v", word=2),
            "OpenSSH": machine.version("ssh", "-V", word=0).removeprefix("OpenSSH_"),
            "OpenSSL": machine.version("openssl", "version", word=1),
        },
        "scale": dataclasses.asdict(scale),
    }


def tell(result: Result, scale: Scale) -> None:
    """One line a figure, so that a person sees how far it is."""
    row = next(row for row in ROWS if row.key == result.row)
    text = f"FAILED: {result.failed}" if result.failed else row.cell(result.metrics)
    print(f"{result.round}/{scale.rounds} {result.stack:<8} {result.row:<11} {text}", flush=True)


def save(path: Path, about: dict[str, object], results: list[Result], rows: Sequence[Row]) -> None:
    """After each figure, so that a run that is broken off leaves what it has."""
    figures = Figures(results)
    keys = sorted(figures.rounds.keys())
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {
        **about,
        "medians": {f"{row} {stack}": figures.medians(row, stack) for row, stack in keys},
        "goals": [dataclasses.asdict(figures.judge(row, goal)) for row in rows for goal in row.goals],
        "rounds": [dataclasses.asdict(result) for result in results],
    }
    path.write_text(json.dumps(text, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
