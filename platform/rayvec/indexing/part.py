"""A part of an index that one process opens: some of the shards, or all but the shards. Knows manifests alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayvec.indexing.segments import EMBEDDINGS, segments_of
from rayvec.storage import JsonObject


@dataclass(frozen=True)
class Part:
    """Which of `of` parts of the shards, counted from 0; none of them where `number` is None, and all where `of` is 0.

    Documents belong to every part, since filters are asked of them; words only to the part without shards.
    """

    number: int | None = None
    of: int = 0

    @property
    def has_words(self) -> bool:
        """Whether the lexical side belongs to it."""
        return self.number is None

    def shards(self, manifest: Mapping[str, Any]) -> list[JsonObject]:
        """The entries of its shards. They are dealt out in turn, so that parts differ by one shard at most."""
        entries: list[JsonObject] = manifest["shards"]
        if not self.of:
            return entries
        return [] if self.number is None else entries[self.number :: self.of]

    def rows(self, manifest: Mapping[str, Any]) -> int:
        """How many vectors it holds, deleted ones too."""
        return sum(int(entry["rows"]) for entry in self.shards(manifest))

    def cut(self, manifest: JsonObject) -> JsonObject:
        """The manifest with only its shards and the files that it opens."""
        if not self.of:
            return manifest
        mine = self.shards(manifest)
        foreign = {entry["file"] for entry in manifest["shards"]} - {entry["file"] for entry in mine}
        words = (
            [] if self.has_words else [f"{segment.folder}/lexical/".lstrip("/") for segment in segments_of(manifest)]
        )
        files = {
            name: facts
            for name, facts in manifest["files"].items()
            if name not in foreign and not name.startswith((EMBEDDINGS, *words))
        }
        return {**manifest, "shards": mine, "files": files}


WHOLE = Part()
