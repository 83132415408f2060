"""Our sampling parameters as vLLM's, so that they mean the same; or a refusal that names what can't be.

Stop strings aren't among them: they are looked for here, token by token, as the torch engine does, also
across the end of an earlier output.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from app.engine.resuming import cannot_resume
from app.errors import InvalidRequestError
from app.generation import SamplingParams, StructuredOutput

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 2.0
"""Below the lowest vLLM takes the lowest; above the highest it refuses."""
# Without the sign: vLLM takes -1 for no seed, and no more than 64 bits.
_SEED_BITS = 2**63 - 1

_VLLM_KINDS = {"json_schema": "json", "regex": "regex", "choice": "choice", "grammar": "grammar"}


def check_sampling(params: SamplingParams) -> None:
    """Refuse what vLLM can't honour.

    Raises:
        InvalidRequestError: names the field, its value and what is allowed.
    """
    temperature = params.temperature
    if not params.is_greedy and not LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE:
        message = (
            f"temperature = {temperature}; allowed with vLLM: 0, or {LOWEST_TEMPERATURE} to "
            f"{HIGHEST_TEMPERATURE}"
        )
        raise InvalidRequestError(message, param="temperature")
    if params.structured_output is not None and params.min_tokens:
        # vLLM allows no end before it, also where the structure is complete and allows nothing else.
        message = f"min_tokens = {params.min_tokens}; allowed with structured output with vLLM: 0"
        raise InvalidRequestError(message, param="min_tokens")


def check_resumable(params: SamplingParams) -> None:
    """Refuse to go on where prompt plus earlier output isn't the same request to vLLM.

    Raises:
        InvalidRequestError: names the field that stands in the way.
    """
    in_the_way = {
        "seed": params.seed is not None and not params.is_greedy,
        "presence_penalty": params.presence_penalty != 0,
        "frequency_penalty": params.frequency_penalty != 0,
        "structured output": params.structured_output is not None,
    }
    for field, is_set in in_the_way.items():
        if is_set:
            reason = f"vLLM can't go on with an output that another rank began when it has {field}"
            raise cannot_resume("earlier_outputs", reason)


def vllm_fields(
    params: SamplingParams,
    *,
    max_tokens: int,
    eos_token_ids: Sequence[int] = (),
    index: int = 0,
    num_earlier_tokens: int = 0,
) -> dict[str, Any]:
    """The fields of vLLM's `SamplingParams`, but for `structured_outputs`, whose own fields are in there.

    Args:
        params: passed `check_sampling`, and `check_resumable` if there is earlier output.
        max_tokens: output tokens still to come at most.
        eos_token_ids: tokens with which the model ends its output.
        index: the sample's number: each has another seed.
        num_earlier_tokens: output tokens that the prompt for vLLM holds already.
    """
    # A complete structure allows nothing but the end, so that one can't be ignored.
    ignore_eos = params.ignore_eos and params.structured_output is None
    stop_token_ids = [*params.stop_token_ids, *(() if ignore_eos else eos_token_ids)]
    fields: dict[str, Any] = {
        "temperature": 0.0 if params.is_greedy else params.temperature,
        "max_tokens": max_tokens,
        "min_tokens": min(max(0, params.min_tokens - num_earlier_tokens), max_tokens),
        "stop_token_ids": sorted(set(stop_token_ids)),
        "ignore_eos": ignore_eos,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "repetition_penalty": params.repetition_penalty,
        "logit_bias": dict(params.logit_bias) or None,
        "logprobs": params.logprobs,
        # A client that has output has had the prompt's before it.
        "prompt_logprobs": None if num_earlier_tokens else params.prompt_logprobs,
        "detokenize": False,
    }
    if not params.is_greedy:
        fields |= {"top_k": params.top_k, "top_p": params.top_p, "min_p": params.min_p}
        fields["seed"] = None if params.seed is None else (params.seed + index) & _SEED_BITS
    if params.structured_output is not None:
        fields["structured_outputs"] = _structure(params.structured_output)
    return fields


def _structure(wanted: StructuredOutput) -> dict[str, Any]:
    source: Any = wanted.source
    if wanted.kind == "choice":
        source = json.loads(source)
    return {_VLLM_KINDS[wanted.kind]: source}
