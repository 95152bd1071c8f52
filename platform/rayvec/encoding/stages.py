"""The stages on Ray Data: a unit a row. Read and tokenize on the CPU, then encode and commit in a pool of actors.

One row is one unit whatever Ray does with blocks: its documents and tokens travel as Arrow IPC bytes, not copied where
they are read. What a stage needs and adds is declared and checked before anything runs. Knows Ray Data, and the
work only by its functions.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rayvec.data.units import Unit
from rayvec.encoding.sink import Record
from rayvec.encoding.spent import Spent
from rayvec.encoding.work import Prepared, Work, complete, prepare
from rayvec.errors import RayvecError, UserError
from rayvec.modeling.encoder import Encoder, Tokenizing
from rayvec.modeling.tokens import TokenBatch
from rayvec.modeling.windows import Windows

if TYPE_CHECKING:
    from ray.data import Dataset

UNIT, DOCUMENTS, TOKENS, WINDOWS, LINES, COUNTS = "unit", "documents", "tokens", "windows", "lines", "counts"
SPENT, RECORD = "spent", "record"
#: Ray ends a run of which no unit has moved for so long. It does not see whether an encoder works: so, longer than a
#: unit should take the slowest. Dead workers and lost nodes are noticed otherwise, and at once.
NO_PROGRESS_S = 24 * 3600
#: Of the environment: other seconds, which Ray reads.
NO_PROGRESS = "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S"
CPU_THREADS = 4  # of an encoder on a CPU: more threads on one text batch bring little
LEAST_CPUS = 0.1
#: A reader waits for storage half of its time. Ray does not fuse reading into the encoders, whose share is another, so
#: the next unit is read while this one is encoded.
READ_CPUS = 0.5
#: Units that an encoder has at hand at once, one of which is encoded; and those that wait there to be fetched.
CALLS = 2
IN_FLIGHT = 4


@dataclass(frozen=True)
class Pool:
    """How many encoders run at once, and what each of them, and each reading task, holds of the cluster."""

    #: At most; `least` of them from the start (all when None), the others while there is work for them and room.
    actors: int
    num_cpus: float
    num_gpus: float
    read_cpus: float
    threads: int | None
    least: int | None = None
    #: The GPU model that they run on, as Ray names it; any when None.
    accelerator_type: str | None = None

    @classmethod
    def fit(
        cls,
        cpus: float,
        gpus: float,
        *,
        node_cpus: float,
        actors: int | None,
        num_gpus: float,
        threads: int | None,
        min_actors: int | None = None,
    ) -> Pool:
        """The pool for a cluster of so many CPUs and GPUs. Reading always keeps a CPU: without one nothing would start.

        node_cpus: of the largest node; an encoder that no node has room for would be waited for for ever.
        With `min_actors` only so many must fit now: `actors` may be more than a cluster that grows has room for yet.
        Raises UserError when the cluster is too small for what is asked.
        """
        if cpus <= 0:
            raise UserError("the cluster has no CPUs for work (num_cpus = 0 on every node); add a node that has some")
        if min_actors is not None:
            start = cls.fit(cpus, gpus, node_cpus=node_cpus, actors=min_actors, num_gpus=num_gpus, threads=threads)
            room = cls.fit(cpus, gpus, node_cpus=node_cpus, actors=None, num_gpus=num_gpus, threads=threads).actors
            return replace(start, actors=actors or max(min_actors, room), least=min_actors)
        if num_gpus > gpus:
            raise UserError(f"num_gpus = {num_gpus:g} an encoder, and the cluster has {gpus:g}; set num_gpus=0")
        reading = min(READ_CPUS, cpus / 2)
        if num_gpus > 0:
            wanted, each = 1.0, None
        else:
            each = threads or int(max(1, min(CPU_THREADS, node_cpus)))
            wanted = min(float(each), node_cpus - min(reading, node_cpus / 2))
        if actors is not None:
            wanted = min(wanted, (cpus - reading) / actors)
        most = int((cpus - reading) / min(wanted, 1.0) + 1e-9)
        if num_gpus > 0:
            most = min(most, int(gpus / num_gpus + 1e-9))
        if actors is not None and (actors > most or wanted < LEAST_CPUS):
            raise UserError(f"actors = {actors} do not fit beside the reading into {cpus:g} CPUs and {gpus:g} GPUs")
        chosen = actors or max(1, min(most, int((cpus - reading) / wanted + 1e-9)))
        return cls(chosen, wanted, num_gpus, reading, each)


class ReadUnit:
    """unit → its documents, their tokens and windows, and the lines of the records refused."""

    needs = (UNIT,)
    adds = (DOCUMENTS, TOKENS, WINDOWS, LINES, COUNTS, SPENT)

    def __init__(self, work: Work) -> None:
        self.work = work

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """One row in, one row out."""
        for row in range(batch.num_rows):
            unit = _unit(batch, row)
            prepared = prepare(self.work, unit, tokenizer_of(self.work))
            yield pa.table(
                {
                    UNIT: batch[UNIT].slice(row, 1),
                    DOCUMENTS: _to_ipc(prepared.documents),
                    TOKENS: _to_ipc(prepared.tokens.to_arrow()),
                    WINDOWS: _to_ipc(prepared.windows.to_arrow()),
                    LINES: pa.array([json.dumps(prepared.lines)]),
                    COUNTS: pa.array([json.dumps(prepared.counts)]),
                    SPENT: pa.array([json.dumps(prepared.spent.to_json())]),
                }
            )


class EncodeUnit:
    """A prepared unit → the record of its commit. Lives in an actor, loads the encoder once.

    Called by CALLS threads: while one waits for storage, another encodes.
    """

    needs = (UNIT, DOCUMENTS, TOKENS, WINDOWS, LINES, COUNTS, SPENT)
    adds = (RECORD, SPENT)

    def __init__(self, work: Work, threads: int | None) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self.work = work
        self.threads = threads
        self.turn = threading.Lock()
        self.encoder: Encoder | RayvecError
        try:
            self.encoder = self._load()
        except RayvecError as error:  # of what a constructor raises Ray keeps the text alone, so it is told when called
            self.encoder = error

    def _load(self) -> Encoder:
        encoder = self.work.load_encoder(self.work.reference)
        if self.threads and "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(self.threads)
        self.work.fingerprint.require(encoder.fingerprint, mine="the plan", theirs="the encoder that was loaded")
        return encoder

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """One row in, one row out."""
        if isinstance(self.encoder, RayvecError):
            raise self.encoder
        for row in range(batch.num_rows):
            prepared = Prepared(
                documents=_from_ipc(batch[DOCUMENTS][row]),
                tokens=TokenBatch.from_arrow(_from_ipc(batch[TOKENS][row])),
                windows=Windows.from_arrow(_from_ipc(batch[WINDOWS][row])),
                lines=json.loads(batch[LINES][row].as_py()),
                spent=Spent(**json.loads(batch[SPENT][row].as_py())),
                counts=json.loads(batch[COUNTS][row].as_py()),
            )
            record = complete(self.work, _unit(batch, row), prepared, self.encoder, self.turn)
            done = {RECORD: [json.dumps(record.to_json())], SPENT: [json.dumps(prepared.spent.to_json())]}
            yield pa.table({UNIT: batch[UNIT].slice(row, 1), **done})


def check_chain(columns: Sequence[str], stages: Sequence[type[ReadUnit] | type[EncodeUnit]]) -> None:
    """Refuse a chain in which a stage needs what no stage before it adds."""
    there = set(columns)
    for stage in stages:
        missing = [name for name in stage.needs if name not in there]
        assert not missing, f"{stage.__name__} needs {missing}; there are {sorted(there)}"
        there |= set(stage.adds)


def run_units(work: Work, units: Sequence[Unit], pool: Pool) -> Generator[tuple[Record, Spent]]:
    """Work through the units on the Ray cluster that is joined; yield each record as it is committed, and its cost.

    Closed early, it leaves the units at work to be done again, or committed, as a kill would.
    """
    check_chain([UNIT], [ReadUnit, EncodeUnit])
    try:
        for row in _dataset(work, units, pool).iter_rows():
            yield Record(**json.loads(row[RECORD])), Spent(**json.loads(row[SPENT]))
    except Exception as error:
        ours = cause(error)
        if ours is None:
            raise
        raise ours from error


def _dataset(work: Work, units: Sequence[Unit], pool: Pool) -> Dataset:
    import ray

    quiet_logs()
    rows = [{UNIT: json.dumps(unit.to_json())} for unit in units]
    read = ReadUnit(work)
    batches: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True}
    place: dict[str, Any] = {"accelerator_type": pool.accelerator_type} if pool.accelerator_type else {}
    return (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map_batches(read.__call__, num_cpus=0, concurrency=min(len(rows), _readers(pool)), **batches)
        .map_batches(
            EncodeUnit,
            fn_constructor_kwargs={"work": work, "threads": pool.threads},
            compute=ray.data.ActorPoolStrategy(
                min_size=pool.least or pool.actors,
                max_size=pool.actors,
                max_concurrent_calls_per_actor=CALLS,
                max_tasks_in_flight_per_actor=IN_FLIGHT,
                enable_true_multi_threading=True,
            ),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus or None,
            **place,
            **batches,
        )
    )


def _readers(pool: Pool) -> int:
    """How many units are read at once: as many as the CPUs beside the encoders give, at least one an encoder.

    Reading asks for no CPU itself: when a node is lost, the encoders can hold every CPU that is left, and a task that
    waits for one would wait as long as they do.
    """
    import ray

    left = float(ray.cluster_resources().get("CPU", 0.0)) - pool.actors * pool.num_cpus
    return max(pool.actors, int(left / pool.read_cpus))


def quiet_logs() -> None:
    """No bars and no banners of Ray's own: the driver tells what a person needs to know."""
    import logging

    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.verbose_progress = False
    if NO_PROGRESS not in os.environ:
        context.execution_no_progress_timeout_s = NO_PROGRESS_S
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def cause(error: BaseException) -> RayvecError | None:
    """The RayvecError that a worker raised, or that says that none of them came on, if that is what stopped the run.

    Ray hands on an object of both its own class and ours, whose text is a traceback; ours is its `cause`.
    """
    from ray.data.exceptions import ExecutionTimeoutError

    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, RayvecError) and not hasattr(one, "cause"):
            return one
        if isinstance(one, ExecutionTimeoutError):
            return RayvecError(
                f"no unit was done for too long ({str(one).partition('.')[0]}); take a smaller unit_rows and another "
                f"output, or allow more seconds with {NO_PROGRESS}, unless the workers hang"
            )
        pending += [one.__context__, one.__cause__, getattr(one, "cause", None)]
    return None


def tokenizer_of(work: Work) -> Tokenizing:
    """The CPU side of the encoder, set to read as much of a document as the work says."""
    return _tokenizer(work.load_tokenizer, work.reference, work.max_length)


@functools.lru_cache(maxsize=2)
def _tokenizer(load: Callable[[str], Tokenizing], reference: str, max_length: int | None) -> Tokenizing:
    """Once a process: Ray keeps its worker processes from task to task."""
    tokenizer = load(reference)
    return tokenizer if max_length is None else tokenizer.reading(max_length)


def _unit(batch: pa.Table, row: int) -> Unit:
    return Unit.from_json(json.loads(batch[UNIT][row].as_py()))


def _to_ipc(table: pa.Table) -> pa.Array:
    """A table as the only value of a binary column."""
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    data = stream.getvalue()
    offsets = pa.array([0, data.size], pa.int64()).buffers()[1]
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, data])


def _from_ipc(value: pa.Scalar) -> pa.Table:
    """The table in a value of a binary column; its columns are views of the value."""
    with pa.ipc.open_stream(value.as_buffer()) as reader:
        return reader.read_all()
