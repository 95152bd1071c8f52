"""Build a search index: python -m jobs.index --recipe hash.index --set embeddings=DIR --set output=DIR.

Which one, measured before: --advise --recipe hash.index --set embeddings=DIR --set output=DIR. Change it: --recipe
hash.update --set index=DIR --set embeddings=NEW --set delete=FILE; --recipe hash.compact --set index=DIR. Look after
it: --list, --verify, --compare, --rollback, --prune.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

# Run as `python jobs/index.py`, a script's own folder comes first on the path, not the checkout's root.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from jobs._cli import job, main
from pipelines import versions
from pipelines._advise_config import AdviseConfig
from pipelines.advise import advise, render
from pipelines.compact import CompactConfig, compact
from pipelines.index import IndexConfig, index
from pipelines.report import Report, summary
from pipelines.update import UpdateConfig, update


def _instead(
    name: str, metavar: str, run: Callable[[Any, click.Context], str], text: str, nargs: int = 1, takes: str = ""
) -> None:
    """Add an option that runs something else than a recipe, prints what it returns, and ends."""

    def callback(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None:
            click.echo(run(value, context))
            context.exit()
        if context.meta.get(takes) is not None:
            raise click.UsageError(f"{takes} goes with {name} DIR")

    option = click.Option([name], metavar=metavar, nargs=nargs, expose_value=False, callback=callback, help=text)
    command.params.append(option)


def _with(name: str, metavar: str, kind: type, text: str) -> None:
    """Add an option that belongs to one of those; it is read first."""

    def callback(context: click.Context, _: click.Parameter, value: Any) -> None:
        context.meta[name] = value

    command.params.append(
        click.Option(
            [name], metavar=metavar, type=kind, is_eager=True, expose_value=False, callback=callback, help=text
        )
    )


def _list(folder: str, _: click.Context) -> str:
    return versions.render_list(versions.list_index(folder))


def _rollback(folder: str, context: click.Context) -> str:
    return f"rolled back\n{summary(versions.roll_back(folder, context.meta['--version']))}"


def _prune(folder: str, context: click.Context) -> str:
    keep = context.meta["--keep"]
    return f"pruned\n{summary(versions.prune(folder, 2 if keep is None else keep))}"


def _compare(given: tuple[str, str, str], _: click.Context) -> str:
    return f"compared\n{summary(versions.compare(*given))}"


def _verify(folder: str, _: click.Context) -> str:
    return f"verified\n{summary(versions.verify_index(folder))}"


def run_advise(config: AdviseConfig) -> Report:
    """Advise on dimensions and index: measure a grid of both on a sample, and recommend the cheapest that is good."""
    report = advise(config)
    click.echo(render(report) + "\n")
    return {name: report[name] for name in ("vectors", "sample", "seconds", "output", "next")}


command = job("index", IndexConfig, index, (UpdateConfig, update), (CompactConfig, compact), (AdviseConfig, run_advise))
_instead("--list", "DIR", _list, "List the versions of an index; * is the live one.")
_instead(
    "--verify",
    "DIR",
    _verify,
    "Check the live version: every size and checksum, the counts, unique ids; status 7 when something is wrong.",
)
_instead(
    "--compare",
    "DIR A B",
    _compare,
    "Compare two versions of an index by the neighbours of the same documents; A and B may be other indices' folders.",
    nargs=3,
)
_instead(
    "--rollback",
    "DIR",
    _rollback,
    "Make the version before the live one live, or the one that --version names.",
    takes="--version",
)
_with("--version", "vN", str, "With --rollback: the version.")
_instead("--prune", "DIR", _prune, "Remove all but the live version and the newest ones.", takes="--keep")
_with("--keep", "N", int, "With --prune: how many of the newest versions stay; 2 by default.")

if __name__ == "__main__":
    main(command)
