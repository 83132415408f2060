"""Why a request ends."""

from __future__ import annotations

from collections.abc import Collection

from app.engine.torch.request import Request
from app.generation import FinishReason


def ending(
    request: Request, token_id: int, eos_token_ids: Collection[int]
) -> tuple[FinishReason | None, str | int | None]:
    """Finish reason and stop reason if `token_id`, the request's last token, ends it; else (None, None).

    The stop reason is the token or string that the request asked to stop at. `min_tokens` needs no look here:
    the sampler chooses no such token too early, and the text stream finds no such string.
    """
    params, text_stream = request.params, request.text_stream
    if token_id in params.stop_token_ids:
        return "stop", token_id
    if token_id in eos_token_ids and not params.ignore_eos:
        return "stop", None
    if text_stream is not None:
        text_stream.push(token_id)
        if text_stream.matched is not None:
            return "stop", text_stream.matched
    if request.grammar is not None:
        request.grammar.accept(token_id)
        if request.grammar.is_finished:
            return "stop", None
    if request.num_output_tokens == request.max_output_tokens:
        return "length", None
    return None, None
