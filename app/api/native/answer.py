"""SGLang's answers to `/generate`, whole or as the events of a stream. A client reads the same shapes.

    {"text": "…", "output_ids": [504, …],
     "meta_info": {"id": the request's rid, or our own id, with _0, _1 … where several samples were wanted,
                   "request_id": ours, which `/router/decisions` knows,
                   "finish_reason": null while it goes on, then {"type": "length", "length": tokens} or
                                    {"type": "stop", "matched": token id | string | null},
                   "prompt_tokens": 37, "cached_tokens": 32, "completion_tokens": 8, "dp_rank": 0,
                   at the end: "e2e_latency": seconds,
                   with return_logprob: "input_token_logprobs": [],
                                        "output_token_logprobs": [[logprob, token id, text | null], …],
                                        "output_token_logprobs_length": 8,
                   with top_logprobs_num: "input_top_logprobs": [],
                                          "output_top_logprobs": [[[logprob, token id, text | null], …], …]},
     in streams of several samples: "index": 0}

Several samples, and a list of one prompt, make a list of these. A stream is an event per sample and step,
then `[DONE]`. An event has everything so far, text and logprobs too; with `incremental_streaming_output`
`text`, `output_ids` and the lists of logprobs have only what is new. All counts are of everything so far in
both: an event whose `output_ids` are fewer than `completion_tokens` is incremental. Errors are
`{"error": {"message": …}}`, before a stream with the status, in it as its last event before `[DONE]`.

`matched` is null where a structured output is complete. Logprobs are of the raw distribution, unlike SGLang's
default, which has the temperature in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from app.generation import TokenChunk, TokenLogprobs
from app.text.text_stream import TextStream

Json = dict[str, Any]
Entry = tuple[float, int, str | None]


@dataclass(frozen=True)
class NativeShape:
    """What every answer to one request has in common.

    Attributes:
        request_id: ours.
        rid: the client's name for the request, None if it gave none.
        num_samples: samples wanted.
        is_list: whether the answer in one piece is a list even of one sample.
        ending_token_ids: the tokens that end an output.
        num_likeliest: likeliest tokens' logprobs beside each token's own; None: no logprobs at all.
        name_of: a token's text, for logprobs; None leaves it out.
        is_incremental: whether an event of a stream has only what is new.
        started_at: when the request came, `time.monotonic()`.
    """

    request_id: str
    rid: str | None
    num_samples: int
    is_list: bool
    ending_token_ids: Collection[int]
    num_likeliest: int | None
    name_of: Callable[[int], str] | None
    is_incremental: bool
    started_at: float = field(default_factory=time.monotonic)

    def answer_id(self, index: int) -> str:
        """The sample's `id`."""
        name = self.rid or self.request_id
        return name if self.num_samples == 1 else f"{name}_{index}"

    def whole(self, samples: list[Json]) -> Json | list[Json]:
        """The answer in one piece, of all samples in order."""
        return samples if self.is_list or len(samples) > 1 else samples[0]


class NativeSample:
    """One sample's answer while its tokens come.

    Args:
        shape: the request's.
        rank: the rank that computes it.
        index: the sample's number.
        text: makes its text, and finds stop strings.
    """

    def __init__(self, shape: NativeShape, rank: int, index: int, text: TextStream) -> None:
        self._shape = shape
        self._rank = rank
        self._index = index
        self._text = text
        self._chunk = TokenChunk([], 0, 0)
        self._pieces: list[str] = []
        self._output_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []

    def take(self, chunk: TokenChunk) -> None:
        """Add what a step has computed."""
        piece = "".join(map(self._text.push, chunk.token_ids))
        if chunk.finish_reason is not None:
            piece += self._text.flush()
        self._chunk = chunk
        self._pieces.append(piece)
        self._output_ids += chunk.token_ids
        self._logprobs += chunk.logprobs or []

    def whole(self) -> Json:
        """Everything so far."""
        text = "".join(self._pieces)
        self._pieces = [text]
        return self._answer(text, list(self._output_ids), self._logprobs, self._finish_reason())

    def event(self) -> Json:
        """What a stream has after the last chunk."""
        if self._shape.is_incremental:
            chunk = self._chunk
            answer = self._answer(
                self._pieces[-1], chunk.token_ids, chunk.logprobs or [], self._finish_reason()
            )
        else:
            answer = self.whole()
        return self._indexed(answer)

    def _indexed(self, answer: Json) -> Json:
        return answer if self._shape.num_samples == 1 else {**answer, "index": self._index}

    def _answer(
        self, text: str, output_ids: list[int], logprobs: list[TokenLogprobs], finish_reason: Json | None
    ) -> Json:
        meta_info: Json = {
            "id": self._shape.answer_id(self._index),
            "request_id": self._shape.request_id,
            "finish_reason": finish_reason,
            "prompt_tokens": self._chunk.num_prompt_tokens,
            "completion_tokens": len(self._output_ids),
            "cached_tokens": self._chunk.num_cached_tokens,
            "dp_rank": self._rank,
        }
        if self._shape.num_likeliest is not None:
            meta_info |= self._shown_logprobs(output_ids, logprobs)
        if finish_reason is not None:
            meta_info["e2e_latency"] = time.monotonic() - self._shape.started_at
        return {"text": text, "output_ids": output_ids, "meta_info": meta_info}

    def _shown_logprobs(self, output_ids: list[int], logprobs: list[TokenLogprobs]) -> Json:
        chosen = zip(output_ids, logprobs, strict=True)
        shown: Json = {
            "input_token_logprobs": [],
            "output_token_logprobs": [self._entry(token_id, each.logprob) for token_id, each in chosen],
            "output_token_logprobs_length": len(self._output_ids),
        }
        if self._shape.num_likeliest:
            shown["input_top_logprobs"] = []
            shown["output_top_logprobs"] = [
                [self._entry(*likely) for likely in each.likeliest] for each in logprobs
            ]
        return shown

    def _entry(self, token_id: int, logprob: float) -> Entry:
        return logprob, token_id, None if self._shape.name_of is None else self._shape.name_of(token_id)

    def _finish_reason(self) -> Json | None:
        if self._chunk.finish_reason is None:
            return None
        if self._chunk.finish_reason == "length":
            return {"type": "length", "length": len(self._output_ids)}
        last = self._output_ids[-1] if self._output_ids else None
        matched = last if last in self._shape.ending_token_ids else self._text.matched
        return {"type": self._chunk.finish_reason, "matched": matched}
