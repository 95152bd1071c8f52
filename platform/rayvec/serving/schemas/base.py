"""Bounds and types that requests share, and the bases of what is sent and of what is answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

MAX_K = 1_000
#: Of one request for vectors, as many as OpenAI takes; and of one search.
MAX_TEXTS = 2_048
MAX_QUERIES = 64
MAX_CHARACTERS = 100_000
MAX_INSTRUCTION = 2_000
MAX_IDS = 32_768

MAX_RERANKED = 200
#: Of one write.
MAX_DOCUMENTS = 256
MAX_DELETES = 1_000
MAX_ID_BYTES = 512
MAX_COLUMNS = 256
#: Documents on a map.
MAX_POINTS = 5_000
#: Numbers of all vectors that one answer carries.
MAX_VALUES = 2_000_000

Include = Literal["text", "payload", "vector", "map"]


def encodable(text: str) -> str:
    """A lone surrogate is valid JSON but no text: it has no UTF-8 form, and tokenizers fail on it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"has a lone surrogate at character {error.start}, which is not text") from None
    return text


def not_blank(text: str) -> str:
    """White space is no text."""
    if not text.strip():
        raise ValueError("is empty; give some text")
    return text


def short(id_: str) -> str:
    """An id is at most MAX_ID_BYTES long."""
    if len(id_.encode()) > MAX_ID_BYTES:
        raise ValueError(f"has more than {MAX_ID_BYTES} bytes")
    return id_


DocumentId = Annotated[str, Field(min_length=1), AfterValidator(encodable), AfterValidator(short)]
Version = Annotated[str, Field(pattern=r"^v[1-9][0-9]{0,17}$")]
Text = Annotated[str, Field(max_length=MAX_CHARACTERS), AfterValidator(encodable), AfterValidator(not_blank)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
Instruction = Annotated[str, Field(max_length=MAX_INSTRUCTION), AfterValidator(encodable)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_IDS)]
TokenLists = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_TEXTS)]


def _shape(value: Any) -> str:
    """Which of the accepted forms a value means, told by its first element, so that only one set of errors is shown."""
    if not isinstance(value, list):
        return "<text>"
    head = value[0] if value else ""
    if isinstance(head, list):
        return "<token lists>"
    return "<tokens>" if isinstance(head, int) and not isinstance(head, bool) else "<texts>"


Queries = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[Text], Field(min_length=1, max_length=MAX_QUERIES), Tag("<texts>")],
    Discriminator(lambda value: "<texts>" if isinstance(value, list) else "<text>"),
]
Vector = Annotated[list[float], Field(min_length=1, max_length=65_536)]
TextsOrTokens = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[Texts, Tag("<texts>")]
    | Annotated[TokenIds, Tag("<tokens>")]
    | Annotated[TokenLists, Tag("<token lists>")],
    Discriminator(_shape),
]


class Request(BaseModel):
    """Base of what clients send. A null is a field left out: many clients write all the fields that they know."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        fields = cls.model_fields
        unset = {name for name, given in value.items() if given is None and name in fields}
        unset = {name for name in unset if not fields[name].is_required() and fields[name].default is not None}
        return {name: given for name, given in value.items() if name not in unset} if unset else value


class Answer(BaseModel):
    """Base of what clients get. Not validated on the way out: numbers are checked where they are made."""

    # A payload may hold bytes, and those are not always text.
    model_config = ConfigDict(frozen=True, ser_json_bytes="base64")


class Usage(Answer):
    """Tokens that the encoder read."""

    prompt_tokens: int
    total_tokens: int
