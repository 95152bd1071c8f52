"""Embed a corpus: python -m jobs.embed --recipe hash.embed --set source.path=… --set output=DIR; or --verify DIR."""

from __future__ import annotations

import sys
from pathlib import Path

import click

# Run as `python jobs/embed.py`, a script's own folder comes first on the path, not the checkout's root.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from jobs._cli import job, main
from pipelines.embed import EmbedConfig, embed, verify
from pipelines.report import summary


def _verify(context: click.Context, _: click.Parameter, folder: str | None) -> None:
    if folder is not None:
        click.echo(f"verified\n{summary(verify(folder))}")
        context.exit()


command = job("embed", EmbedConfig, embed)
command.params.append(
    click.Option(
        ["--verify"],
        metavar="DIR",
        is_eager=True,
        expose_value=False,
        callback=_verify,
        help="Read everything that was embedded into DIR again, encode a sample again, and compare; status 7 when "
        "something is wrong.",
    )
)

if __name__ == "__main__":
    main(command)
