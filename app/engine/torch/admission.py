"""From a request to its samples as the scheduler takes them, or a refusal that says why."""

from __future__ import annotations

from collections.abc import Sequence

from app.engine.limits import Limits
from app.engine.resuming import cannot_resume, check_earlier_outputs
from app.engine.torch.request import Grammar, NewGrammar, NewTextStream, PromptUsage, Request, TextStream
from app.engine.torch.stopping import append
from app.errors import InvalidRequestError, RequestFailedError
from app.generation import GenerateRequest, SamplingParams


class Admission:
    """Makes samples. Every method may be called from any thread.

    Args:
        limits: of model and cache.
        eos_token_ids: tokens with which the model ends its output.
        new_text_stream: finds stop strings; without it requests that have some are refused.
        new_grammar: makes structured output; without it requests for some are refused.
    """

    def __init__(
        self,
        limits: Limits,
        eos_token_ids: Sequence[int],
        new_text_stream: NewTextStream | None,
        new_grammar: NewGrammar | None,
    ) -> None:
        self._limits = limits
        self._eos_token_ids = eos_token_ids
        self._new_text_stream = new_text_stream
        self._new_grammar = new_grammar

    def prepare(self, params: SamplingParams) -> None:
        """Compile what `params` ask for, so that `samples` finds it compiled.

        Raises:
            InvalidRequestError: the structured output doesn't compile.
        """
        self._grammar(params)

    def samples(self, request: GenerateRequest) -> list[Request]:
        """The samples that are to be computed, by index; each is where its earlier output ends.

        Raises:
            InvalidRequestError: the logit bias has an unknown token, the structured output doesn't compile,
                there are stop strings or structured output and nothing to find or make them with, or the
                earlier output isn't one that goes on here.
        """
        self._limits.check_known("logit_bias", request.params.logit_bias)
        usage = PromptUsage()
        if request.earlier_outputs is None:
            return [self._sample(request, index, usage) for index in range(request.n)]
        check_earlier_outputs(request)
        samples = []
        for index, token_ids in sorted(request.earlier_outputs.items()):
            # A client that has output has had the prompt's logprobs before it.
            sample = self._sample(request, index, usage, scores_prompt=not token_ids)
            self._replay(sample, token_ids)
            samples.append(sample)
        return samples

    def _sample(
        self, request: GenerateRequest, index: int, usage: PromptUsage, *, scores_prompt: bool = True
    ) -> Request:
        params = request.params
        room = self._limits.max_output_tokens(len(request.prompt_token_ids))
        return Request.new(
            request.request_id,
            request.prompt_token_ids,
            params,
            max_output_tokens=min(params.max_tokens, room),
            index=index,
            priority=request.priority,
            usage=usage,
            cache_salt=request.cache_salt,
            text_stream=self._text_stream(params),
            grammar=self._grammar(params),
            scores_prompt=scores_prompt,
        )

    def _text_stream(self, params: SamplingParams) -> TextStream | None:
        if not params.stop:
            return None
        if self._new_text_stream is None:
            raise InvalidRequestError("stop: this engine has no tokenizer to find strings with", param="stop")
        return self._new_text_stream(params.stop, params.min_tokens, params.skip_special_tokens)

    def _grammar(self, params: SamplingParams) -> Grammar | None:
        wanted = params.structured_output
        if wanted is None:
            return None
        if self._new_grammar is None:
            message = f"{wanted.field}: this engine has no tokenizer to make structured output with"
            raise InvalidRequestError(message, param=wanted.field)
        return self._new_grammar(wanted)

    def _replay(self, sample: Request, token_ids: Sequence[int]) -> None:
        """Bring a new sample to where it is after `token_ids`, as if they had been chosen here one by one."""
        field = f"earlier_outputs.{sample.index}"
        self._limits.check_known(field, token_ids)
        if len(token_ids) >= sample.max_output_tokens:
            longest = sample.max_output_tokens
            raise cannot_resume(field, f"{len(token_ids)} tokens; the output has {longest} at most")
        for token_id in token_ids:
            if not sample.params.is_greedy:
                sample.draw()  # each token took one number
            if append(sample, token_id, self._eos_token_ids) is not None:
                raise cannot_resume(field, f"the output ended with token number {sample.num_output_tokens}")
        if sample.grammar is not None:
            try:
                sample.grammar.allowed_tokens()
            except RequestFailedError as error:
                raise cannot_resume(field, error.message) from None
