"""Plain text files, each one document: its id is the file's name relative to the source, its title the bare name.

A unit is a list of whole files, so that many small files do not become many small units.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from rayvec.data.files import COMPRESSIONS, Listing
from rayvec.data.layout import Layout
from rayvec.data.readers.base import UNIT_BYTES, Span
from rayvec.data.readers.lines import check_all_text
from rayvec.data.records import Builder
from rayvec.data.source_config import SourceConfig
from rayvec.data.streams import BOM, DamagedError, chunks
from rayvec.data.units import Input, Unit, UnitData


class DocumentReader:
    """See base.Reader. Positions are places in the listing, from 0."""

    def layout(self, config: SourceConfig, listing: Listing) -> Layout:
        """See base.Reader."""
        check_all_text(config, listing)
        return Layout("id" if config.make_ids == "path" else None, "title", ("text",), make_ids=config.make_ids)

    def spans(self, config: SourceConfig, listing: Listing, unit_rows: int) -> Iterable[Span]:
        """See base.Reader."""
        del config
        first = 0
        for files in _groups(listing.files, unit_rows):
            yield Span(files, first, first + len(files), first, len(files))
            first += len(files)

    def read(self, config: SourceConfig, listing: Listing, layout: Layout, unit: Unit) -> UnitData:
        """See base.Reader."""
        builder = Builder(layout)
        for position, uri in enumerate(unit.files, unit.start):
            _add(builder, position, listing.name(uri), uri, config)
        return builder.finish()


def _groups(files: Iterable[Input], unit_rows: int) -> Iterator[tuple[Input, ...]]:
    group, size = list[Input](), 0
    for file in files:
        if group and (len(group) >= unit_rows or size + file.bytes > UNIT_BYTES):
            yield tuple(group)
            group, size = [], 0
        group.append(file)
        size += file.bytes
    if group:
        yield tuple(group)


def _add(builder: Builder, position: int, name: str, uri: str, config: SourceConfig) -> None:
    parts, size = [], 0
    try:
        for chunk in chunks(uri, 0, config.encoding):
            size += len(chunk)
            if size > config.max_record_bytes:
                detail = f"more than {config.max_record_bytes} bytes"
                builder.reject(position, 0, "record_too_large", detail=detail, id_=name)
                return
            parts.append(chunk)
        text = b"".join(parts).removeprefix(BOM).decode()
    except DamagedError as error:
        builder.reject(position, error.offset, "damaged", detail=str(error), id_=name)
    except UnicodeDecodeError as error:
        builder.reject(position, error.start, "invalid_utf8", detail=str(error), id_=name)
    else:
        builder.add(position, 0, {"id": name, "title": title_of(name), "text": text})


def title_of(name: str) -> str:
    """The bare name of a file.

    >>> title_of("notes/2024/ideas.txt.gz")
    'ideas'
    """
    path = PurePosixPath(name)
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path).stem
