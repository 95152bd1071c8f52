"""The plan of a run: which inputs, cut into which units, by which encoder, under which settings.

The plan is written once, put-if-absent; a later run on the same output must have the same one, or is refused with the
name of the field that differs. Knows files and fingerprints. Knows no Ray and reads no record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rayvec import storage, uris
from rayvec.data.units import Input, Unit
from rayvec.errors import MismatchError, UserError, VerificationError
from rayvec.fingerprint import Fingerprint

FORMAT = "rayvec.plan/1"
FILE = "_plan.json"
COLLECTED = "source"  # the folder in which a source that has no files of its own is collected, before the plan


@dataclass(frozen=True)
class Plan:
    """What a run will do. Two runs with equal plans write the same rows."""

    inputs: tuple[Input, ...]
    units: tuple[Unit, ...]
    fingerprint: Fingerprint
    #: Everything else that moves a byte of the output: source columns, instruction, vector type, unit size…
    settings: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` turns back."""
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint.model_dump(),
            "settings": dict(self.settings),
            "inputs": [one.to_json() for one in self.inputs],
            "units": [unit.to_json() for unit in self.units],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """Read a saved plan. Raises VerificationError when it is not one that this version writes."""
        if value.get("format") != FORMAT:
            raise VerificationError(f"the plan is of format {value.get('format')!r}, this version reads {FORMAT!r}")
        return cls(
            inputs=tuple(Input(**one) for one in value["inputs"]),
            units=tuple(Unit.from_json(one) for one in value["units"]),
            fingerprint=Fingerprint.parse(value["fingerprint"]),
            settings=value["settings"],
        )

    @property
    def sha256(self) -> str:
        """Of the plan as it is written."""
        return storage.sha256_bytes(storage.to_json(self.to_json()))

    def require_same(self, there: Plan, output: str) -> None:
        """Raise MismatchError naming what differs from the plan that is `there`, unless nothing does."""
        self.fingerprint.require(there.fingerprint, mine="this run", theirs=output)
        for difference in _differences(self, there):
            raise MismatchError(
                f"{output} was begun with another plan: {difference}. "
                "Run it as it was begun, or choose another output (or remove this one)"
            )


def agree(output: str, plan: Plan) -> Plan:
    """Write the plan, or find the same one there. Raises MismatchError (exit status 3) naming the differing field."""
    uri = uris.join(output, FILE)
    if storage.put_if_absent(uri, storage.to_json(plan.to_json())):
        return plan
    there = Plan.from_json(storage.read_json(uri))
    plan.require_same(there, output)
    return plan


def check_output(output: str) -> None:
    """Refuse a folder that holds something else. Raises UserError."""
    if storage.size(output) >= 0:
        raise UserError(f"output {output} is a file; choose a folder")
    names = [name for name in storage.list_names(output) if not name.startswith(".") and name != COLLECTED]
    if names and FILE not in names:
        raise UserError(f"{output} holds other files ({names[0]}, …) and no embeddings; choose an empty output folder")


def _differences(mine: Plan, there: Plan) -> Iterator[str]:
    """What differs, in words; the first is the one worth telling."""
    old, new = _flat(there.settings), _flat(mine.settings)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield f"{key} is {new.get(key)!r} now, and was {old.get(key)!r}"
    before = {one.uri: one for one in there.inputs}
    after = {one.uri: one for one in mine.inputs}
    for uri in sorted(before.keys() | after.keys()):
        if uri not in after:
            yield f"input {uri} is gone"
        elif uri not in before:
            yield f"input {uri} is new"
        elif before[uri].bytes != after[uri].bytes:
            yield f"input {uri} has {after[uri].bytes} bytes now, and had {before[uri].bytes}"
        elif before[uri].modified != after[uri].modified:
            yield f"input {uri} was modified since"
    if mine.units != there.units:
        yield "its inputs are cut into other units"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result
