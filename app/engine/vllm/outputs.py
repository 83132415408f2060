"""From what vLLM's steps add to a sample to our chunks of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from app.errors import RequestFailedError
from app.generation import TokenChunk, TokenLogprobs


class TextStream(Protocol):
    """Incremental detokenisation of one output that looks for stop strings."""

    @property
    def matched(self) -> str | None:
        """The stop string found, if one was."""

    def push(self, token_id: int) -> str:
        """Take one token; the text that is now safe to emit."""


class Logprob(Protocol):
    """vLLM's class of this name: one token's, with its rank among all, from 1."""

    @property
    def logprob(self) -> float: ...

    @property
    def rank(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class VllmOutput:
    """What was added to a sample since the last one: as vLLM says it.

    Attributes:
        token_ids: at least one, but for a last one.
        logprobs: for each token, by token id, that of the token itself and those of the likeliest; None: off.
        finish_reason: vLLM's; None while the sample goes on.
        num_cached_tokens: tokens of the prompt that were found in the cache.
        prompt_logprobs: for each token of the prompt, as `logprobs`, with None for the first; None: off.
    """

    token_ids: Sequence[int]
    logprobs: Sequence[Mapping[int, Logprob]] | None
    finish_reason: str | None
    num_cached_tokens: int
    prompt_logprobs: Sequence[Mapping[int, Logprob] | None] | None = None


@dataclass(slots=True)
class PromptUsage:
    """What the samples of one prompt have in common: what the first to answer found in the cache."""

    num_cached_tokens: int | None = None


class SampleReader:
    """Makes the chunks of one sample.

    Args:
        index: the sample's number.
        num_prompt_tokens: of the request's prompt, without earlier output.
        num_logprobs: likeliest tokens that the request wants; None: no logprobs.
        usage: shared by the samples of the request.
        text_stream: finds the stop strings; None: there are none.
        prompt_token_ids: the prompt, if its logprobs are wanted.
        num_prompt_logprobs: likeliest tokens wanted with each of these.
    """

    def __init__(
        self,
        index: int,
        num_prompt_tokens: int,
        num_logprobs: int | None,
        usage: PromptUsage,
        text_stream: TextStream | None,
        prompt_token_ids: Sequence[int] = (),
        num_prompt_logprobs: int = 0,
    ) -> None:
        self._prompt_token_ids = prompt_token_ids
        self._num_prompt_logprobs = num_prompt_logprobs
        self._index = index
        self._num_prompt_tokens = num_prompt_tokens
        self._num_logprobs = num_logprobs
        self._usage = usage
        self._text_stream = text_stream

    def read(self, output: VllmOutput) -> TokenChunk:
        """The next chunk; with a finish reason it is the last, also where vLLM would go on.

        Raises:
            RequestFailedError: vLLM gave the sample up.
        """
        if self._usage.num_cached_tokens is None:
            self._usage.num_cached_tokens = min(output.num_cached_tokens, self._num_prompt_tokens)
        if output.finish_reason not in (None, "stop", "length"):
            raise RequestFailedError(f"vLLM ended the request ({output.finish_reason}); its log says why")
        token_ids, finish_reason = self._until_stop(output)
        return TokenChunk(
            token_ids=token_ids,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._usage.num_cached_tokens,
            finish_reason=finish_reason,
            index=self._index,
            logprobs=self._logprobs(token_ids, output),
            prompt_logprobs=self._scored_prompt(output),
        )

    def _scored_prompt(self, output: VllmOutput) -> list[TokenLogprobs] | None:
        if output.prompt_logprobs is None or not self._prompt_token_ids:
            return None
        places = zip(self._prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
        count = self._num_prompt_logprobs
        return [_token_logprobs(token_id, found, count) for token_id, found in places if found is not None]

    def _until_stop(self, output: VllmOutput) -> tuple[list[int], str | None]:
        """The tokens up to the one that completes a stop string."""
        if self._text_stream is not None:
            for count, token_id in enumerate(output.token_ids, start=1):
                self._text_stream.push(token_id)
                if self._text_stream.matched is not None:
                    return list(output.token_ids[:count]), "stop"
        return list(output.token_ids), output.finish_reason

    def _logprobs(self, token_ids: Sequence[int], output: VllmOutput) -> list[TokenLogprobs] | None:
        if self._num_logprobs is None or output.logprobs is None:
            return None
        places = zip(token_ids, output.logprobs, strict=False)  # none is needed after a stop string
        return [_token_logprobs(token_id, found, self._num_logprobs) for token_id, found in places]


def _token_logprobs(token_id: int, found: Mapping[int, Logprob], count: int) -> TokenLogprobs:
    # The chosen token is there also when it isn't among the likeliest; its rank is then beyond them.
    ranked = sorted(
        (each.rank, other, each.logprob)
        for other, each in found.items()
        if each.rank is not None and each.rank <= count
    )
    likeliest = tuple((other, logprob) for _, other, logprob in ranked[:count])
    return TokenLogprobs(found[token_id].logprob, likeliest)
