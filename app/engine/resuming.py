"""Whether a request's earlier outputs can be what it says, for every engine that goes on with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.errors import InvalidRequestError, shown
from app.generation import GenerateRequest


def check_earlier_outputs(request: GenerateRequest) -> None:
    """Refuse wrong types too: a request comes over a wire, where no type checker looks.

    Raises:
        InvalidRequestError: no sample goes on, one doesn't exist, or its tokens aren't a list of token ids.
    """
    earlier: object = request.earlier_outputs
    if not isinstance(earlier, Mapping):
        raise cannot_resume("earlier_outputs", f"{shown(earlier)}; a mapping of sample to tokens is needed")
    if not earlier:
        raise cannot_resume("earlier_outputs", "no sample goes on; at least one is needed")
    for index, token_ids in earlier.items():
        field = f"earlier_outputs.{shown(index)}"
        if type(index) is not int or not 0 <= index < request.n:
            raise cannot_resume(field, f"no such sample; allowed: 0 to {request.n - 1}")
        if not isinstance(token_ids, Sequence) or any(type(token_id) is not int for token_id in token_ids):
            raise cannot_resume(field, f"{shown(token_ids)}; a list of token ids is needed")


def cannot_resume(field: str, reason: str) -> InvalidRequestError:
    """The refusal of earlier outputs, because of `field` in them."""
    return InvalidRequestError(f"{field}: {reason}", param="earlier_outputs")
