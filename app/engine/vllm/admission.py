"""From a request to the samples that vLLM computes, each a request of its own; or a refusal that says why.

A request's samples aren't vLLM's `n`: it refuses several greedy ones, and part of them couldn't go on alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from app.engine.limits import Limits
from app.engine.resuming import cannot_resume, check_earlier_outputs
from app.engine.vllm.outputs import PromptUsage, SampleReader, TextStream
from app.engine.vllm.sampling import check_resumable, check_sampling, vllm_fields
from app.errors import InvalidRequestError
from app.generation import GenerateRequest

NewTextStream = Callable[[Sequence[str], int, bool], TextStream]
"""From stop strings and the number of tokens in whose text they aren't looked for."""


@dataclass(frozen=True, slots=True)
class VllmSample:
    """One sample as vLLM gets it.

    Attributes:
        request_id: ours with the sample's number: vLLM makes it unique.
        token_ids: the prompt, and output that another rank produced.
        fields: of vLLM's `SamplingParams`.
        reader: makes its chunks.
        num_private_tokens: tokens at the end that it has for itself: the samples before it share the others.
    """

    request_id: str
    token_ids: list[int]
    fields: dict[str, Any]
    reader: SampleReader
    num_private_tokens: int | None


class Admission:
    """Makes samples.

    Args:
        limits: of model and cache.
        eos_token_ids: tokens with which the model ends its output.
        new_text_stream: finds stop strings.
    """

    def __init__(self, limits: Limits, eos_token_ids: Sequence[int], new_text_stream: NewTextStream) -> None:
        self._limits = limits
        self._eos_token_ids = tuple(eos_token_ids)
        self._new_text_stream = new_text_stream

    def samples(self, request: GenerateRequest) -> list[VllmSample]:
        """The samples that are to be computed, by index.

        Raises:
            InvalidRequestError: vLLM can't honour a field, or go on with the earlier output.
            PromptTooLongError: the prompt never fits.
        """
        params = request.params
        self._limits.check_prompt(request.prompt_token_ids)
        self._limits.check_known("logit_bias", params.logit_bias)
        self._limits.check_known("stop_token_ids", params.stop_token_ids)
        check_sampling(params)
        usage = PromptUsage()
        if request.earlier_outputs is None:
            return [self._sample(request, index, usage) for index in range(request.n)]
        check_earlier_outputs(request)
        check_resumable(params)
        return [
            self._sample(request, index, usage, earlier, is_first=count == 0)
            for count, (index, earlier) in enumerate(sorted(request.earlier_outputs.items()))
        ]

    def _sample(
        self,
        request: GenerateRequest,
        index: int,
        usage: PromptUsage,
        earlier: Sequence[int] = (),
        *,
        is_first: bool | None = None,
    ) -> VllmSample:
        params, prompt = request.params, request.prompt_token_ids
        longest = min(params.max_tokens, self._limits.max_output_tokens(len(prompt)))
        text_stream = (
            self._new_text_stream(params.stop, params.min_tokens, params.skip_special_tokens)
            if params.stop
            else None
        )
        self._replay(request, index, earlier, longest, text_stream)
        fields = vllm_fields(
            params,
            max_tokens=longest - len(earlier),
            eos_token_ids=self._eos_token_ids,
            index=index,
            num_earlier_tokens=len(earlier),
        )
        is_first = index == 0 if is_first is None else is_first
        return VllmSample(
            request_id=f"{request.request_id}-{index}",
            token_ids=[*prompt, *earlier],
            fields=fields,
            reader=SampleReader(
                index,
                len(prompt),
                params.logprobs,
                usage,
                text_stream,
                () if earlier or params.prompt_logprobs is None else prompt,
                params.prompt_logprobs or 0,
            ),
            num_private_tokens=None if is_first else len(prompt) % self._limits.block_size + len(earlier),
        )

    def _replay(
        self,
        request: GenerateRequest,
        index: int,
        earlier: Sequence[int],
        longest: int,
        text_stream: TextStream | None,
    ) -> None:
        """Refuse earlier output after which nothing comes; the text stream is then where it ended."""
        field, params = f"earlier_outputs.{index}", request.params
        self._limits.check_known(field, earlier)
        if len(earlier) >= longest:
            raise cannot_resume(field, f"{len(earlier)} tokens; the output has {longest} at most")
        ending = {*params.stop_token_ids, *(() if params.ignore_eos else self._eos_token_ids)}
        for count, token_id in enumerate(earlier, start=1):
            if text_stream is not None:
                text_stream.push(token_id)
            if token_id in ending or (text_stream is not None and text_stream.matched is not None):
                raise cannot_resume(field, f"the output ended with token number {count}")


def check_samples(num_samples: int, allowed: int) -> None:
    """Raise `InvalidRequestError` for a number of samples that can never wait together."""
    if not 1 <= num_samples <= allowed:
        raise InvalidRequestError(
            f"n = {num_samples}; allowed: 1 to {allowed}, as many as may wait", param="n"
        )
