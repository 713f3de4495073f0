"""Run benchmarks: ``python -m tests.bench NAME`` or ``all``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from tests.bench import access, cold, hits, lists, memory, outage, pushes, single
from tests.bench.result import Result
from tests.bench.settings import Settings

BENCHMARKS: dict[str, Callable[[Settings], Result]] = {
    "single": single.run,
    "cold": cold.run,
    "hits": hits.run,
    "memory": memory.run,
    "pushes": pushes.run,
    "lists": lists.run,
    "access": access.run,
    "outage": outage.run,
}


@click.command()
@click.argument("name", type=click.Choice([*BENCHMARKS, "all"]))
@click.option("--quick", is_flag=True, help="Small and short: shows that claims hold, says nothing about speed.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder for <name>.json. [default: a new temporary one]",
)
def main(name: str, quick: bool, out: Path | None) -> None:
    """Run a benchmark, print its table and write it as JSON. Ends with 1 when a counted claim fails."""
    out = Path(tempfile.mkdtemp(prefix="mirror-bench-out-")) if out is None else out
    out.mkdir(parents=True, exist_ok=True)
    ok = True
    for one in BENCHMARKS if name == "all" else [name]:
        result = BENCHMARKS[one](Settings(quick))
        print(result.table(), flush=True)
        print(f"  {result.write(out, quick=quick)}\n", flush=True)
        ok = ok and result.ok
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main(prog_name="python -m tests.bench")
