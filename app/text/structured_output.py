"""What an output must be: JSON by a schema, a match of a regex, one of some texts, a text of a grammar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from app.errors import InvalidRequestError

MAX_SOURCE_CHARS = 65_536
"""Characters of a schema, regex, grammar or list of choices at most: what compiles within about a second."""


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """A constraint as it was asked for.

    Attributes:
        kind: what `source` is.
        source: a JSON schema or a list of choices, both as JSON; a regex; a grammar in Lark's or llama.cpp's
            notation.
        field: the request's field that `source` came in, for errors.

    Raises:
        InvalidRequestError: the source is too long.
    """

    kind: Literal["json_schema", "regex", "choice", "grammar"]
    source: str
    field: str

    def __post_init__(self) -> None:
        if len(self.source) > MAX_SOURCE_CHARS:
            raise InvalidRequestError(
                f"{self.field}: {len(self.source)} characters; allowed: at most {MAX_SOURCE_CHARS}",
                param=self.field,
            )
