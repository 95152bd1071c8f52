"""Look for what would stop, endanger or slow a run: python -m jobs.doctor --output DIR; on a cluster --nodes too."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

# Run as `python jobs/doctor.py`, a script's own folder comes first on the path, not the checkout's root.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from jobs._cli import main
from pipelines import doctor
from pipelines._finding import as_json, rendered
from pipelines._ray import ray_session


@click.command(
    name="doctor", help="Look for what would stop, endanger or slow a run, and say the cure; status 1 on errors."
)
@click.option("--output", "places", metavar="DIR", multiple=True, help="A folder or URI that a run would write to.")
@click.option("--address", default="", metavar="URL", help="Ray's dashboard; those of this machine by default.")
@click.option(
    "--nodes", is_flag=True, help="Ask every node of the cluster that RAY_ADDRESS names (a submitted job's own)."
)
@click.option("--json", "plain", is_flag=True, help="Print JSON.")
def command(places: tuple[str, ...], address: str, nodes: bool, plain: bool) -> None:
    """Examine, print, and end with status 1 when there are errors."""
    findings = doctor.examine(places, address)
    if nodes:
        with ray_session():
            findings += doctor.on_every_node(places)
    report = as_json(findings)
    click.echo(json.dumps(report, indent=2, ensure_ascii=False) if plain else rendered(findings))
    if not report["ok"]:
        sys.exit(1)


if __name__ == "__main__":
    main(command)
