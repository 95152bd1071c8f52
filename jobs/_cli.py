"""The one command line of all jobs: --recipe, --config, --set, --dry-run, --help; errors as one line and a status."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click

from pipelines.recipes import get_recipe, recipes
from pipelines.report import Report, summary
from rayvec.config import Config, merged, parse_overrides, read_yaml
from rayvec.errors import RayvecError

C = TypeVar("C", bound=Config)


def job(
    verb: str,
    config_type: type[C],
    run: Callable[[C], Report],
    *others: tuple[type[Config], Callable[[Any], Report]],
    plan: Callable[[C], Sequence[str]] | None = None,
    shortcuts: Mapping[str, tuple[str, str]] | None = None,
) -> click.Command:
    """The command of a verb: resolve the configuration, call the pipeline, print the report.

    others: further things that the verb does, each with its own type of configuration; `_meant` says which is chosen,
    and each has a flag of its kind's name.
    plan: lines that --dry-run adds, as YAML comments, on what a configuration of the first type would need.
    shortcuts: options that choose a kind and set one of its values: {"suite": ("mteb", "suite")} takes --suite NAME.
    """
    runs: dict[type[Config], Callable[[Any], Report]] = dict([(config_type, run), *others])
    known = recipes(*runs)
    width = max((len(name) for name in known), default=0)
    lines = [f"  {name:<{width}}  {_first_line(recipe)}" for name, recipe in known.items()]
    epilog = "\n".join(["\b", "Recipes:", *lines])
    purpose = "\n\n".join(map(_first_line, runs.values()))

    @click.command(name=verb, help=purpose, epilog=epilog, context_settings={"max_content_width": 120})
    @click.option("--recipe", metavar="NAME", help="Start from this recipe (listed below).")
    @click.option("--config", "file", metavar="FILE", help="Lay a YAML file or URI over it: all of the keys, or some.")
    @click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Set one value, as in --set a.b=3.")
    @click.option("--dry-run", is_flag=True, help="Print the whole resolved configuration and exit.")
    def command(
        recipe: str | None,
        file: str | None,
        overrides: tuple[str, ...],
        dry_run: bool,
        kind: str | None = None,
        **given: str | None,
    ) -> None:
        for name, value in given.items():
            if value is not None and shortcuts is not None:
                kind, key = shortcuts[name]
                overrides = (f"{key}={value}", *overrides)
        meant = _kinds(runs)[kind] if kind else _meant(tuple(runs), recipe, file, overrides)
        config = resolve(meant, recipe, file, overrides, tuple(runs))
        if dry_run:
            click.echo(config.to_yaml(), nl=False)
            if plan is not None and isinstance(config, config_type):
                click.echo("\n".join(f"# {line}" for line in plan(config)))
            return
        report = runs[meant](config)
        click.echo(f"{verb}: done")
        click.echo(summary(report))

    for name, (of_kind, key) in (shortcuts or {}).items():
        text = f"As --{of_kind} --set {key}=NAME."
        command.params.append(click.Option([f"--{name}", name], metavar="NAME", help=text))
    for kind, other in _kinds(runs).items():
        command.params.append(click.Option([f"--{kind}", "kind"], flag_value=kind, help=_first_line(runs[other])))
    return command


def _kinds(types: Iterable[type[Config]]) -> dict[str, type[Config]]:
    """The types that have a kind, by its name: all but the first."""
    return {str(found.model_fields["kind"].default): found for found in list(types)[1:]}


def _first_line(function: Callable[..., object]) -> str:
    return (function.__doc__ or "").strip().partition("\n")[0]


def _meant(
    types: tuple[type[Config], ...], recipe: str | None, file: str | None, overrides: tuple[str, ...]
) -> type[Config]:
    """Which of a verb's configurations is meant: the recipe's; else that whose `kind` is given; else the first."""
    if recipe:
        config = get_recipe(recipe, *types)
        return next(found for found in types if isinstance(config, found))
    kind = merged(read_yaml(file) if file else {}, parse_overrides(overrides)).get("kind")
    return _kinds(types).get(str(kind), types[0])


def resolve(
    config_type: type[C],
    recipe: str | None,
    file: str | None,
    overrides: tuple[str, ...],
    types: tuple[type[Config], ...] = (),
) -> C:
    """Recipe, then file, then overrides, the last one winning. Raises UserError.

    types: all that the verb takes. A recipe of another of them gives what both have: its embeddings, its seed.
    """
    layers = [read_yaml(file)] if file else []
    layers.append(parse_overrides(overrides))
    if not recipe:
        return config_type.parse(merged(*layers))
    start = get_recipe(recipe, config_type, *types)
    if isinstance(start, config_type):
        return start.updated(*layers)
    shared = config_type.model_fields.keys() - {"kind"}
    return config_type.parse(merged(start.model_dump(mode="json", include=set(shared)), *layers))


def main(command: click.Command) -> None:
    """Run a command as a program: a RayvecError becomes one line on stderr and its exit status, and so does SIGTERM."""
    signal.signal(signal.SIGTERM, _stop)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rayvec").setLevel(logging.INFO)
    try:
        command.main(standalone_mode=False)
    except RayvecError as error:
        _fail(str(error), error.exit_status)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.Abort:
        _fail("interrupted; run the same command again to go on", 130)
    except _StoppedError:
        _fail("stopped; run the same command again to go on", 128 + signal.SIGTERM)
    except click.ClickException as error:
        _fail(error.format_message(), 2)


class _StoppedError(BaseException):
    """What SIGTERM raises: no handler of errors takes it, and all that is to be left clean is."""


def _stop(*_: object) -> None:
    raise _StoppedError


def _fail(message: str, status: int) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.stdout.flush()
    sys.exit(status)
