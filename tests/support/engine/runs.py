"""An engine driven to its end, and what it said."""

from __future__ import annotations

from app.engine.torch.engine import Engine
from app.engine.torch.outputs import RequestOutput


def run(engine: Engine) -> dict[str, list[RequestOutput]]:
    """Step until nothing is left: every output by request."""
    outputs: dict[str, list[RequestOutput]] = {}
    while engine.has_work():
        for output in engine.step().outputs:
            outputs.setdefault(output.request_id, []).append(output)
        engine.check_integrity()
    return outputs


def tokens_of(outputs: list[RequestOutput]) -> list[int]:
    """All tokens of a request's outputs, in order."""
    return [token for output in outputs for token in output.new_token_ids]
