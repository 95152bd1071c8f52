"""One version of the index for all writes that wait: what each asks is settled in order, embedded, and committed once.

New documents become one small delta. Deltas that a service wrote before and that are not twice as large as what follows
them are taken into it: sizes stay a falling row of powers of two, so that n documents lie in about log2(n) deltas, each
document is written again as often, and a search has few deltas to go through. What is taken in is read from the
embeddings that lie within the version.

Knows versions, updates and how documents are embedded. Knows no event loop, no HTTP but for the errors of a client, and
no Ray.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from cachetools import LRUCache

from rayvec.data.embeddings import read_part
from rayvec.encoding.direct import embed, publish_part
from rayvec.encoding.work import Work
from rayvec.errors import RayvecError, VerificationError
from rayvec.fingerprint import Fingerprint
from rayvec.indexing import drafts, segments, tasks, updates, versions
from rayvec.indexing.drafts import Draft
from rayvec.indexing.ranking import Rows
from rayvec.indexing.segments import EMBEDDINGS, Segment
from rayvec.indexing.updates import Before, Delta
from rayvec.indexing.upserts import Kept, key_of
from rayvec.modeling.encoder import Tokenizing, Vectorizing
from rayvec.schema import ID, N_TOKENS, TRUNCATED
from rayvec.serving.changes import Change, Written
from rayvec.serving.problems import Problem, invalid
from rayvec.serving.tables import Values, documents_of, fields_of, table_of
from rayvec.storage import JsonObject

_LOG = logging.getLogger(__name__)

#: Who made a version, in its manifest.
BY = "service"
#: Versions of ours that stay, beside the live one and those that are open.
KEPT_VERSIONS = 8
#: Rows that are written again at most: what one write may have to wait for.
MERGED_ROWS = 8192
#: The share of the rows that may change before recall is measured again. New rows are compared one by one, so none of
#: them is missed; what probing can lose by deleted rows is less than their share.
UNPROVED_SHARE = 0.01

#: Of ids that stay in memory: about 20 million short ones. Those beyond are read for every version.
IDS_BYTES = 512 << 20


class Committer:
    """Makes versions of the index at a place, one at a time.

    work, settings: how documents are embedded, and as the manifest of embeddings has it; tokenizer: set to read as much
    of a document as that says.
    """

    def __init__(self, uri: str, work: Work, settings: JsonObject, tokenizer: Tokenizing, encoder: Vectorizing) -> None:
        self._uri = uri
        self._work = work
        self._settings = settings
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._ids: LRUCache[tuple[str, str, int], pa.ChunkedArray] = LRUCache(IDS_BYTES, lambda ids: int(ids.nbytes))
        self._own: list[str] | None = None
        self._trash = ThreadPoolExecutor(1, thread_name_prefix="trash")

    def commit(self, changes: Sequence[Change]) -> list[Written | Problem]:
        """Put all changes into one version, in their order; a change that cannot be made is a Problem in its place.

        What is returned is on disk and live. Where nothing changes there is no new version.
        Raises ConcurrentWriterError while another process writes, StorageError, MismatchError when the index was built
        anew by another encoder or with other settings, VerificationError, and whatever the encoder raises; then nothing
        is changed.
        """
        clock = _Clock()
        with drafts.new_version(self._uri, waits=False) as draft, tasks.here():
            before = Before.live(self._uri)
            mine = Fingerprint.parse(before.manifest["fingerprint"])
            mine.require(self._work.fingerprint, mine="index", theirs="encoder")
            cure = "start the service again over it"
            updates.check_settings(before.manifest, self._settings, theirs="the service", cure=cure)
            outcomes = self._settled(draft, before, changes, clock)
        for outcome in outcomes:
            if isinstance(outcome, Written):
                outcome.seconds = clock.seconds
        return outcomes

    def _settled(
        self, draft: Draft, before: Before, changes: Sequence[Change], clock: _Clock
    ) -> list[Written | Problem]:
        """The outcomes; where a document cannot be embedded, its change is left out and the others are settled anew."""
        problems: dict[int, Problem] = {}
        fields = fields_of(before)
        tables: dict[int, pa.Table] = {}
        for number, change in enumerate(changes):
            try:
                tables[number] = table_of(change.documents, fields)
            except Problem as problem:
                problems[number] = problem
        while True:
            plan = _Plan.of(before, {n: (table, changes[n].ids) for n, table in tables.items()}, clock, self._ids)
            part, refused = self._embedded(plan, clock)
            if not refused:
                break
            for number in [n for n, table in tables.items() if refused & set(table[ID].to_pylist())]:
                (id_, *_) = refused & set(tables.pop(number)[ID].to_pylist())
                problems[number] = invalid(f"documents: the encoder gives {id_!r} no finite vector", "documents")
        version = self._publish(draft, before, plan, part, clock)
        for number, written in plan.outcomes.items():
            written.version = version
            _count_tokens(written, part, set(tables[number][ID].to_pylist()))
        return [problems.get(number) or plan.outcomes[number] for number in range(len(changes))]

    def _embedded(self, plan: _Plan, clock: _Clock) -> tuple[pa.Table | None, set[str]]:
        documents = plan.documents
        if documents is None:
            return None, set()
        with clock("encode"):
            part, refused = embed(self._work, documents, self._tokenizer, self._encoder)
        ids = documents[ID].to_pylist()
        return part, {ids[row] for row in refused}

    def _publish(self, draft: Draft, before: Before, plan: _Plan, part: pa.Table | None, clock: _Clock) -> str:
        """Make the version, unless nothing changes; its name, or that of the live one."""
        if part is None and not len(plan.gone):
            return str(before.manifest["version"])
        if part is None and len(plan.gone) == before.manifest["count"]:
            raise Problem(409, "index_would_be_empty", "an index must hold a document; put others in first")
        delta, kept = None, before
        changed = len(plan.gone) + (0 if part is None else part.num_rows)
        if part is not None:
            with clock("embeddings"):
                absorbed = absorbing(before, part.num_rows, plan.gone)
                kept = before.without(absorbed)
                table = pa.concat_tables([*_live_parts(before, absorbed, plan.gone), part]).combine_chunks()
                place = draft.folder / f"{EMBEDDINGS}{draft.name}"
                dataset = publish_part(place, table, self._work, self._settings)
        with clock("build"):
            if part is not None:
                delta = Delta.of(dataset, kept)
                delta = replace(delta, sources=tuple(replace(source, uri=place.name) for source in delta.sources))
            said = {"update": {"embeddings": None, "deletes": None, "written": draft.name}, "by": BY}
            facts = updates.fill(draft, kept, plan.gone, delta, said)
        with clock("prove"):
            facts |= _proof(draft, facts, changed, delta is not None)
        with clock("publish"):
            draft.commit(facts)
            self._prune(draft)
        return draft.name

    def _prune(self, draft: Draft) -> None:
        """Remove the oldest of our own versions; those that jobs made stay. What fails here the next write does."""
        try:
            self._remove_oldest(draft)
        except (OSError, RayvecError) as error:  # the version is live: who wrote it is told so
            _LOG.warning("old versions of %s stay: %s", draft.output, error)

    def _remove_oldest(self, draft: Draft) -> None:
        if self._own is None:
            self._own = [name for name in versions.list_versions(draft.output) if _is_ours(draft.output, name)]
        else:
            self._own.append(draft.name)
        removed = set(versions.remove(draft.output, self._own[:-KEPT_VERSIONS]))
        self._own = [name for name in self._own if name not in removed]
        self._trash.submit(versions.empty_trash, draft.output)


class _Clock:
    """Adds up the seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin


@dataclass(frozen=True)
class _Plan:
    """What all changes together come to: documents to embed (None: none), live rows that go, and each one's outcome."""

    documents: pa.Table | None
    gone: Rows
    outcomes: dict[int, Written]

    @classmethod
    def of(
        cls, before: Before, changes: Mapping[int, tuple[pa.Table, Sequence[str]]], clock: _Clock, kept: Kept
    ) -> _Plan:
        """Settle changes one after the other, each as if those before it were made."""
        asked = [id_ for table, ids in changes.values() for id_ in (*table[ID].to_pylist(), *ids)]
        wanted = pa.array(dict.fromkeys(asked), pa.string())
        with clock("ids"):
            matches = before.match(wanted, kept)
            there = documents_of(before, wanted, matches)
        now: dict[str, Values | None] = dict(there)
        places: dict[str, tuple[int, int]] = {}
        outcomes = {}
        for number, (table, ids) in changes.items():
            outcome = outcomes[number] = Written()
            for row, document in enumerate(table.to_pylist()):
                id_ = document[ID]
                if now.get(id_) == document:
                    outcome.unchanged += 1
                    continue
                outcome.added += now.get(id_) is None
                outcome.replaced += now.get(id_) is not None
                now[id_], places[id_] = document, (number, row)
            for id_ in ids:
                if now.get(id_) is None:
                    outcome.unknown_ids.append(id_)
                    continue
                outcome.deleted += 1
                now[id_] = None
        new = [changes[n][0].slice(row, 1) for id_, (n, row) in places.items() if now[id_] is not None]
        touched = {id_ for id_ in there if now[id_] is None or id_ in places}
        of_row = wanted.to_pylist()
        gone = np.array([row for row, i in zip(matches.rows, matches.of_row, strict=True) if of_row[i] in touched])
        return cls(pa.concat_tables(new).combine_chunks() if new else None, gone.astype(np.int64), outcomes)


def absorbing(before: Before, new: int, gone: Rows) -> int:
    """How many deltas at the end are to be taken into one of `new` rows, which then stands in their place."""
    dropped = np.union1d(before.dropped, gone)
    size, count = new, 0
    for segment in reversed(segments.segments_of(before.manifest)[1:]):
        gone_here = segments.local(dropped, segment.start, segment.rows)
        live = segment.rows - (0 if gone_here is None else len(gone_here))
        if not _is_written(segment) or live >= 2 * size or live + size > MERGED_ROWS:
            break
        size, count = size + live, count + 1
    return count


def _is_written(segment: Segment) -> bool:
    return len(segment.sources) == 1 and segment.sources[0].is_inside and not segment.left_out


def _live_parts(before: Before, count: int, gone: Rows) -> Iterator[pa.Table]:
    """The live rows of the last segments, as parts of embeddings."""
    dropped = np.union1d(before.dropped, gone)
    known = segments.segments_of(before.manifest)
    for segment in known[len(known) - count :]:
        (source,) = segment.sources
        (uri,) = source.open(before.folder).part_uris
        table = read_part(uri)
        if table.num_rows != segment.rows:
            raise VerificationError(f"{uri} holds {table.num_rows} rows, not {segment.rows}; build the index again")
        live = np.ones(segment.rows, np.bool_)
        here = segments.local(dropped, segment.start, segment.rows)
        live[[] if here is None else here] = False
        yield table.filter(pa.array(live))


def _proof(draft: Draft, facts: JsonObject, changed: int, added: bool) -> JsonObject:
    """Search and proof for the manifest: measured where enough has changed since it was, else taken over."""
    if added:
        updates.check_added(draft, facts)
    proof: JsonObject = facts["proof"]
    unproved = proof.get("unproved", {}).get("rows", 0) + changed
    if unproved > UNPROVED_SHARE * segments.rows_of(facts):
        return updates.prove(draft, facts, seed=0)[0]
    why = f"at most {UNPROVED_SHARE:.0%} of the rows changed since; new ones are compared one by one"
    return {"proof": {**proof, "unproved": {"rows": unproved, "why": why}}}


def _count_tokens(written: Written, part: pa.Table | None, ids: set[str]) -> None:
    if part is None:
        return
    key = key_of(part.schema.names)
    for id_, tokens, cut in zip(*(part[name].to_pylist() for name in (key, N_TOKENS, TRUNCATED)), strict=True):
        if id_ in ids:
            written.n_tokens += tokens
            if cut:
                written.truncated.append(id_)


def _is_ours(output: Path, name: str) -> bool:
    try:
        return versions.read_manifest(versions.version_folder(output, name)).get("by") == BY
    except VerificationError:
        return False
