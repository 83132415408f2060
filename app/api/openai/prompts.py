"""A text completion of several prompts: as many requests of one prompt each, served by themselves."""

from __future__ import annotations

from typing import Any, TypeVar

from app.api.openai.requests import TextRequest
from app.api.request_model import parse_values, read_json
from app.errors import InvalidRequestError, RequestError, shown

MAX_PROMPTS = 1024
"""Prompts of one request at most."""
MAX_CHOICES = 4096
"""Choices of one answer at most, `n` for each prompt."""

Error = TypeVar("Error", bound=RequestError)


def parse_texts(body: bytes) -> list[TextRequest]:
    """The text completions in `body`, one for each of its prompts, in order.

    Raises:
        InvalidRequestError: as `parse_body` does, or there are too many prompts or choices.
    """
    values = read_json(body)
    prompts = values.get("prompt") if isinstance(values, dict) else None
    if not (isinstance(prompts, list) and len(prompts) > 1 and isinstance(prompts[0], str | list)):
        return [parse_values(TextRequest, values)]
    if len(prompts) > MAX_PROMPTS:
        message = f"prompt: {len(prompts)} prompts; at most {MAX_PROMPTS} are allowed"
        raise InvalidRequestError(message, param="prompt")
    parsed = [_parsed(prompt, place) for place, prompt in enumerate(prompts)]
    request = parse_values(TextRequest, {**values, "prompt": ""})
    if len(prompts) * request.n > MAX_CHOICES:
        message = f"n = {request.n}: {len(prompts)} prompts; at most {MAX_CHOICES} choices are allowed in all"
        raise InvalidRequestError(message, param="n")
    return [request.model_copy(update={"prompt": prompt}) for prompt in parsed]


def _parsed(prompt: Any, place: int) -> str | list[int]:
    if not isinstance(prompt, str | list):
        field = f"prompt.{place}"
        raise InvalidRequestError(f"{field} = {shown(prompt)}: a string or a list is needed", param=field)
    try:
        # In a list of its own, so that a list in it isn't taken for a list of prompts.
        return parse_values(TextRequest, {"prompt": [prompt]}).prompt
    except InvalidRequestError as error:
        raise of_prompt(error, place) from None


def of_prompt(error: Error, place: int) -> Error:
    """`error`, which names the one of several prompts that it is about."""
    error.message = f"prompt {place} (from 0): {error.message}"
    error.args = (error.message,)
    if error.param is not None and error.param.partition(".")[0] == "prompt":
        error.param = f"prompt.{place}{error.param.removeprefix('prompt')}"
    return error
