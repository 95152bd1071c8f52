"""Did adapting an encoder to a corpus help? Before and after, on the corpus's own texts, without any labels.

Questions are made out of the corpus: titles ask for their bodies, held-out spans for the rest of their texts (the
inverse cloze task), or a log of queries is given. Beside the numbers goes a page of nearest neighbours to read.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, PositiveInt

from pipelines._corpus import Spread, spread, tables
from pipelines._systems import SystemConfig, open_system
from pipelines.report import Report
from rayvec import storage, uris
from rayvec.config import Config
from rayvec.data.source_config import SourceConfig
from rayvec.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from pipelines._vectors import KeptVectors
    from rayvec.evaluation.retrieval import PerQuery

#: Words of a held-out span, and of the text that must be left.
SPAN_WORDS, REST_WORDS = (6, 14), 20
MAIN_METRIC = "ndcg@10"
#: Neighbours on the page, and letters of each.
NEIGHBOURS, LETTERS = 5, 160


class AdaptationConfig(Config):
    """Two encoders, a corpus, how questions are made of it, and where the report goes."""

    kind: Literal["adaptation"] = "adaptation"
    before: SystemConfig = SystemConfig(name="before")
    after: SystemConfig = SystemConfig(name="after")
    source: SourceConfig = SourceConfig()
    #: titles: a title asks for its body; spans: some words of a text, taken out of it, ask for the rest; log: `log`;
    #: auto: titles where half of the texts have one, else spans.
    questions: Literal["auto", "titles", "spans", "log"] = "auto"
    #: jsonl of query and positive (an id of the corpus).
    log: str = ""
    #: Documents that are searched, spread over the corpus; and questions, of as many of them.
    max_documents: PositiveInt = 5000
    max_queries: PositiveInt = 500
    #: Questions whose neighbours stand on the page.
    examples: int = Field(12, ge=0)
    seed: int = 0
    #: The report, as JSON; table (.md), page (.neighbours.md) and chart (.png) go beside it.
    output: str = ""
    cache: str = ""


#: Id, title and text.
Record = tuple[str, str, str]


class Corpus(NamedTuple):
    """What is searched, and what is asked: question q asks for document answers[q]."""

    ids: list[str]
    texts: list[str]
    questions: list[str]
    answers: list[str]
    how: str


def report_adaptation(config: AdaptationConfig) -> Report:
    """Compare two encoders on a corpus without labels: who finds the text that a question was made of?

    Raises UserError when the corpus gives no questions or the encoders cannot be loaded.
    """
    from rayvec.evaluation.report import bar_chart
    from rayvec.evaluation.retrieval import estimates
    from rayvec.evaluation.statistics import compare

    if not config.output.endswith(".json"):
        raise UserError("output is required; give a file with --set output=FILE.json")
    started = time.monotonic()
    stem = config.output.removesuffix(".json")
    cache = config.cache or f"{stem}.cache"
    corpus = load_corpus(config, cache)
    values: dict[str, PerQuery] = {}
    ranks: dict[str, np.ndarray] = {}
    costs: dict[str, Any] = {}
    for name, system in (("before", config.before), ("after", config.after)):
        ranks[name], values[name], costs[name] = _searched(system, corpus, uris.join(cache, "vectors"))
    found = {name: estimates(row) for name, row in values.items()}
    change = {m: compare(values["after"][m], values["before"][m]) for m in values["after"]}
    report = {
        "corpus": PurePosixPath(config.source.where).name or config.source.kind,
        "questions": corpus.how,
        "documents": len(corpus.ids),
        "queries": len(corpus.questions),
        "systems": {name: {m: e.to_json() for m, e in row.items()} for name, row in found.items()},
        "change": {m: c.to_json() for m, c in change.items()},
        "verdict": verdict(change[MAIN_METRIC].difference, change[MAIN_METRIC].p_value),
        "costs": costs,
        "seconds": round(time.monotonic() - started, 2),
        "output": config.output,
    }
    storage.write_bytes(f"{stem}.md", (render(report) + "\n").encode())
    page = neighbours_page(corpus, ranks, values, config.examples)
    storage.write_bytes(f"{stem}.neighbours.md", page.encode())
    bar_chart(found, [MAIN_METRIC, "recall@10", "recall@100"], f"{report['corpus']}: {corpus.how}", f"{stem}.png")
    storage.write_json(config.output, report)
    return report


def load_corpus(config: AdaptationConfig, cache: str) -> Corpus:
    """The documents and the questions made of them. Raises UserError where there are too few."""
    records = _records(config, cache)
    how = config.questions
    if how == "log":
        return _from_log(config, records)
    kept: Spread[Record] = Spread(config.max_documents)
    count = titled = 0
    for record in records:
        kept.add(record)
        count += 1
        titled += bool(record[1].strip())
    if how == "auto":
        how = "titles" if 2 * titled >= count > 0 else "spans"
    ids, texts, questions, answers = [], [], [], []
    for id_, title, text in kept.picked():
        made = _by_title(title, text) if how == "titles" else _by_span(text, f"{config.seed}:{id_}")
        question, rest = made or ("", text)
        ids.append(id_)
        texts.append(rest)
        if question:
            questions.append(question)
            answers.append(id_)
    return _limited(Corpus(ids, texts, questions, answers, _SAID[how]), config.max_queries)


def _records(config: AdaptationConfig, cache: str) -> Iterator[Record]:
    """Id, title and text of each document; of an id that is repeated the first, as `jobs.embed` keeps it."""
    seen: set[str] = set()
    for table in tables(config.source, cache):
        titles = table["title"].to_pylist() if "title" in table.column_names else [""] * len(table)
        for id_, title, text in zip(table["id"].to_pylist(), titles, table["text"].to_pylist(), strict=True):
            if id_ not in seen:
                seen.add(id_)
                yield id_, title or "", text


_SAID = {
    "titles": "a title asks for its body",
    "spans": "a span taken out of a text asks for the rest",
    "log": "queries of a log",
}


def _from_log(config: AdaptationConfig, records: Iterable[Record]) -> Corpus:
    from rayvec.evaluation.local_sets import read_records

    if not config.log:
        raise UserError("log is required for questions=log; give jsonl of query and positive with --set log=FILE")
    asked = [(str(r.get("query") or ""), str(r.get("positive") or "")) for r in read_records(config.log)]
    asked = [(query, answer) for query, answer in asked if query.strip()]
    answering = {answer for _, answer in asked}
    wanted: list[Record] = []
    others: Spread[Record] = Spread(config.max_documents)
    for record in records:
        if record[0] in answering:
            wanted.append(record)
        else:
            others.add(record)
    known = {id_ for id_, _, _ in wanted}
    usable = [(query, answer) for query, answer in asked if answer in known]
    kept = wanted + others.picked(max(0, config.max_documents - len(known)))
    texts = [f"{title}\n{text}" if title else text for _, title, text in kept]
    questions, answers = [query for query, _ in usable], [answer for _, answer in usable]
    return _limited(Corpus([id_ for id_, _, _ in kept], texts, questions, answers, _SAID["log"]), config.max_queries)


def _by_title(title: str, text: str) -> tuple[str, str] | None:
    """Question and body; a body that repeats its title at its beginning is asked for without it."""
    title, body = " ".join(title.split()), text.strip()
    if body.startswith(title):
        body = body[len(title) :].strip()
    return (title, body) if title and len(body.split()) >= REST_WORDS else None


def _by_span(text: str, key: str) -> tuple[str, str] | None:
    """Some words in a row, and the text without them; which ones is chosen by a hash, the same on every machine."""
    words = [match.span() for match in re.finditer(r"\S+", text)]
    number = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    low, high = SPAN_WORDS
    size = low + number % (high - low + 1)
    if len(words) < size + REST_WORDS:
        return None
    first = (number >> 16) % (len(words) - size + 1)
    start, stop = words[first][0], words[first + size - 1][1]
    return " ".join(text[start:stop].split()), text[:start] + text[stop:]


def _limited(corpus: Corpus, limit: int) -> Corpus:
    if len(corpus.questions) < 10:
        raise UserError(
            f"the corpus gives {len(corpus.questions)} questions ({corpus.how}); at least 10 are needed: give more or "
            "longer texts, or another way with --set questions=…"
        )
    chosen = spread(list(zip(corpus.questions, corpus.answers, strict=True)), limit)
    return corpus._replace(questions=[q for q, _ in chosen], answers=[a for _, a in chosen])


def _searched(system: SystemConfig, corpus: Corpus, folder: str) -> tuple[np.ndarray, PerQuery, dict[str, float]]:
    from pipelines._vectors import KeptVectors
    from rayvec.evaluation.exact import ExactSearch
    from rayvec.evaluation.retrieval import DEPTH, evaluate

    if not system.has_vectors:
        raise UserError(f"{system.name} has no vectors; compare encoders")
    vectors: KeptVectors = KeptVectors(open_system(system, "tiny"), system.name, folder)
    search = ExactSearch(vectors(corpus.questions, system.instruction), DEPTH)
    search.add(vectors(corpus.texts))
    # Names by which no question is a document.
    names, documents = [f"q{place}" for place in range(len(corpus.questions))], [f"d{id_}" for id_ in corpus.ids]
    qrels = {name: {f"d{answer}": 1} for name, answer in zip(names, corpus.answers, strict=True)}
    return search.rows_QK, evaluate(search.rows_QK, documents, names, qrels), vectors.cost.to_json()


def verdict(difference: float, p: float) -> str:
    """Whether it helped, in a sentence.

    >>> verdict(0.05, 0.001)
    'adaptation helped'
    """
    if p >= 0.05:
        return "no difference that could not be chance; ask more questions, or adapt longer"
    return "adaptation helped" if difference > 0 else "adaptation made it worse: keep the encoder from before"


def render(report: Report) -> str:
    """The report as people read it: the verdict first."""
    from rayvec.evaluation.report import p_value, table
    from rayvec.evaluation.statistics import Estimate

    systems = {name: {m: Estimate(**e) for m, e in row.items()} for name, row in report["systems"].items()}
    change = report["change"][MAIN_METRIC]
    counts = f"{report['documents']:,} documents, {report['queries']:,} questions"
    head = f"{report['corpus']}: {counts} ({report['questions']})"
    line = (
        f"{report['verdict']}: {change['difference']:+.3f} {MAIN_METRIC} "
        f"[{change['low']:+.3f}, {change['high']:+.3f}], {p_value(change['p_value'])}"
    )
    return "\n\n".join([head, line, table(systems)])


def neighbours_page(corpus: Corpus, ranks: dict[str, np.ndarray], values: dict[str, PerQuery], examples: int) -> str:
    """A Markdown page: what gained most, what lost most, and some of all; each with its neighbours before and after."""
    import numpy as np

    gain = values["after"][MAIN_METRIC] - values["before"][MAIN_METRIC]
    order = np.argsort(-gain, kind="stable")
    third = max(1, examples // 3)
    chosen = [*order[:third], *order[::-1][:third], *spread(range(len(gain)), third)]
    chosen = list(dict.fromkeys(int(place) for place in chosen))[:examples]
    parts = [
        "# Nearest neighbours",
        f"What gained most by {MAIN_METRIC}, what lost most, then others. ✓ is the text asked for.",
    ]
    for place in chosen:
        parts.append(f"## {_short(corpus.questions[place])}")
        parts.append(
            f"{MAIN_METRIC} {values['before'][MAIN_METRIC][place]:.2f} → {values['after'][MAIN_METRIC][place]:.2f}"
        )
        for name in ("before", "after"):
            rows = ranks[name][place][:NEIGHBOURS].tolist()
            lines = [
                f"{number}. {'✓ ' if corpus.ids[row] == corpus.answers[place] else ''}{_short(corpus.texts[row])}"
                for number, row in enumerate(rows, 1)
            ]
            parts.append(f"**{name}**\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _short(text: str) -> str:
    """The beginning of a text on one line, nothing in it read as Markdown or HTML."""
    line = " ".join(text.split())
    line = line if len(line) <= LETTERS else line[: LETTERS - 1] + "…"
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", line)
