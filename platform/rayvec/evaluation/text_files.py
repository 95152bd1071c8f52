"""Small files of text as a whole: gzipped or not, in UTF-8; the rows of csv files. Knows files. Knows no task."""

from __future__ import annotations

import csv
import gzip
import io
import zlib

from rayvec import storage
from rayvec.errors import UserError


def read_text(uri: str, wanted: str) -> str:
    """The text of a file. wanted: what such a file is, for the error. Raises UserError that names the file."""
    if storage.size(uri) < 0:
        raise UserError(f"{uri} does not exist; give {wanted}")
    return decoded(storage.read_bytes(uri), uri, wanted)


def decoded(data: bytes, name: str, wanted: str) -> str:
    """The text of a file's bytes, unpacked where its name ends in .gz. Raises UserError that names the file."""
    try:
        return (gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{name} cannot be read as text in UTF-8 ({error}); give {wanted}") from None


def csv_rows(text: str, uri: str, delimiter: str = ",", quoting: int = csv.QUOTE_MINIMAL) -> list[list[str]]:
    """The rows of csv text, blank lines as empty rows. Raises UserError that names the file and the line."""
    # A field may be a whole document; Python's own limit is 131,072 letters, one for the whole process.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)  # type: ignore[arg-type]
    try:
        return list(reader)
    except csv.Error as error:
        raise UserError(f"{uri}, line {reader.line_num}: {error}; write it as csv") from None
