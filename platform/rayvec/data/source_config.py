"""The configuration of a source. Knows no reader."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from rayvec.config import Config

Kind = Literal["auto", "parquet", "jsonl", "csv", "tsv", "text", "hf", "pydocs"]


class SourceConfig(Config):
    """Where the documents come from, and which of their columns are what. `meta.text` is `text` inside of `meta`."""

    #: "auto" goes by the files' extensions; "hf" is a folder that save_to_disk of Hugging Face's datasets wrote.
    kind: Kind = "auto"
    #: A file, a folder (read recursively), a glob pattern, a URI of these, or a list of them. Not used by pydocs.
    path: str | tuple[str, ...] = ""
    #: Default: `id`, then `_id`; where neither is there, ids are made.
    id_column: str | None = None
    #: What becomes of a record whose id is null, empty or not there, where others have one.
    missing_id: Literal["quarantine", "make"] = "quarantine"
    #: Of what ids are made: "<file name>:<position>", the name relative to `path`; or a hash of title and text, which
    #: is the same wherever the record stands, so that equal texts are duplicates.
    make_ids: Literal["path", "content"] = "path"
    #: Default: `title`, where it is there.
    title_column: str | None = None
    #: Joined by newlines. Default: the first that is there of `text`, `abstract`, `content`, `body`.
    text_columns: tuple[str, ...] = ()
    #: Columns carried beside the text; "all" for every column that is not id, title or text. A value that does not fit
    #: what its column holds elsewhere becomes null, and is counted.
    payload: tuple[str, ...] | Literal["all"] = ()

    #: Of csv, tsv, jsonl and text, such as "latin-1". Default: UTF-8, or what a byte order mark says.
    encoding: str | None = None
    #: csv and tsv without a header line: the names of the columns.
    column_names: tuple[str, ...] = ()
    #: csv and tsv: the separator, where it is neither a comma nor a tab.
    delimiter: str | None = Field(None, min_length=1, max_length=1)
    #: csv and tsv: whether `"` encloses fields; false takes it as it stands, as many tsv files mean it.
    quotes: bool = True
    #: text: false makes one document of each file, true one of each line that is not blank.
    lines: bool = False

    #: hf: which split of a DatasetDict that save_to_disk wrote.
    split: str | None = None

    #: pydocs: names of distributions, `python` for the standard library; none takes all that is installed.
    packages: tuple[str, ...] = ()
    #: pydocs: docstrings shorter than this are left out.
    min_characters: int = Field(40, ge=0)

    #: Files found damaged or of the wrong format before the work: refuse the run, or quarantine them and go on.
    on_bad_input: Literal["fail", "quarantine"] = "fail"
    #: Larger records are quarantined, without ever being held in memory.
    max_record_bytes: int = Field(64 << 20, ge=1)

    @property
    def where(self) -> str:
        """The path or paths, to be told."""
        return self.path if isinstance(self.path, str) else ", ".join(self.path)

    @field_validator("text_columns", "payload", "column_names", "packages", mode="before")
    @classmethod
    def _one_name_is_a_list(cls, value: Any, field: ValidationInfo) -> Any:
        is_name = isinstance(value, str) and (field.field_name, value) != ("payload", "all")
        return (value,) if is_name else value

    @field_validator("delimiter", mode="before")
    @classmethod
    def _tab(cls, delimiter: Any) -> Any:
        """A tab as a shell hands it on: in two characters."""
        return "\t" if delimiter == "\\t" else delimiter

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str | None) -> str | None:
        try:
            "a".encode(encoding or "utf-8")
        except LookupError:
            raise ValueError(f"no encoding {encoding!r}; utf-8, utf-16, latin-1 and cp1252 are usual") from None
        return encoding

    @model_validator(mode="after")
    def _options_fit_the_kind(self) -> SourceConfig:
        fits = {
            "encoding": ("csv", "tsv", "jsonl", "text", "auto"),
            "column_names": ("csv", "tsv", "auto"),
            "delimiter": ("csv", "tsv", "auto"),
            "lines": ("text", "auto"),
            "split": ("hf", "auto"),
            "packages": ("pydocs",),
        }
        for name, kinds in fits.items():
            if getattr(self, name) and self.kind not in kinds:
                raise ValueError(f"{name} is for kind {' or '.join(kinds)}, not {self.kind}")
        return self
