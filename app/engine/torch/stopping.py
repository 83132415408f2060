"""The next token of a request, and why a request ends with it."""

from __future__ import annotations

from collections.abc import Collection

from app.engine.torch.request import Request
from app.generation import FinishReason


def append(request: Request, token_id: int, eos_token_ids: Collection[int]) -> FinishReason | None:
    """Append a token to a request's output; the finish reason if the request ends with it.

    `min_tokens` needs no check here: the sampler chooses no ending token too early, and the text stream finds
    no stop string too early.
    """
    request.token_ids.append(token_id)
    params, text_stream = request.params, request.text_stream
    if token_id in params.stop_token_ids or (token_id in eos_token_ids and not params.ignore_eos):
        return "stop"
    if text_stream is not None:
        text_stream.push(token_id)
        if text_stream.matched is not None:
            return "stop"
    if request.grammar is not None:
        request.grammar.accept(token_id)
        if request.grammar.is_finished:
            return "stop"
    return "length" if request.num_output_tokens == request.max_output_tokens else None
