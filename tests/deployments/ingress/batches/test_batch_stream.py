"""Several prompts as one stream: numbers of choices, usage, one that fails, and a client that goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from app.api.openai.requests import TextRequest
from app.api.openai.responses import AnswerShape
from app.deployments.ingress.answers.completions import whole_answer
from app.deployments.ingress.batches import batch_stream
from app.deployments.ingress.batches.batch_stream import BatchStream, Prepared
from app.deployments.ingress.dispatch.rank_stream import RankStream
from app.deployments.ingress.misses.cache_report import CacheReport
from app.deployments.ingress.request_reader import PreparedRequest
from app.errors import QueueFullError, RequestFailedError
from app.generation import GenerateRequest, SamplingParams, TokenChunk
from app.text.text_stream import TextStream
from tests.support.deadlines import until
from tests.support.fake_deployments import Begun, RankStep, Silence, begun


def prompts(count: int, n: int = 1) -> list[Prepared]:
    body = TextRequest(prompt="Hello", n=n)
    return [
        PreparedRequest(body, GenerateRequest(f"a-{place}", [5], SamplingParams(1), n=n), None, None)
        for place in range(count)
    ]


class Ranks:
    """Serves each prompt by a script, or not at all.

    Attributes:
        begun: what was begun, in order.
    """

    def __init__(self, scripts: Mapping[int, Sequence[RankStep] | Exception]) -> None:
        self._scripts = scripts
        self.begun: list[Begun] = []

    async def begin(self, prepared: Prepared) -> tuple[RankStream, CacheReport]:
        script = self._scripts[int(prepared.generate.request_id.rpartition("-")[2])]
        if isinstance(script, Exception):
            raise script
        self.begun.append(await begun(script, prepared.body.n))
        report = CacheReport()
        report.begin(self.begun[-1].stream)
        return self.begun[-1].stream, report


def chunk(token_id: int, *, num_cached: int = 0, index: int = 0, is_last: bool = True) -> TokenChunk:
    return TokenChunk([token_id], 20, num_cached, "length" if is_last else None, index)


async def test_choices_are_numbered_prompt_by_prompt_and_usage_is_summed() -> None:
    ranks = Ranks({place: [chunk(place, num_cached=4 * place)] for place in range(3)})
    stream = BatchStream(ranks.begin, prompts(3))
    await stream.start()
    shape = AnswerShape("text", "a", "m", prompt_token_ids=[[7], [8], [9]], n=1)
    texts = [TextStream(lambda ids: "".join(map(str, ids)), lambda each: False) for _ in range(3)]
    answer = await whole_answer(shape, stream, *texts, missed=stream.report.details)
    shown = [(each["index"], each["text"], each["prompt_token_ids"]) for each in answer["choices"]]
    assert shown == [(0, "0", [7]), (1, "1", [8]), (2, "2", [9])]
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (60, 3)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 12}
    assert stream.report.headers() == {"x-dp-rank": "1", "x-kvbeacon-cache": "hit=12 missed=48"}
    assert [each.results for each in ranks.begun] == [["finished"]] * 3


async def test_samples_of_a_prompt_follow_each_other() -> None:
    ranks = Ranks({place: [chunk(5, index=1), chunk(6, index=0)] for place in range(2)})
    stream = BatchStream(ranks.begin, prompts(2, n=2))
    await stream.start()
    assert sorted([(each.index, *each.token_ids) async for each in stream]) == [
        (0, 6),
        (1, 5),
        (2, 6),
        (3, 5),
    ]


async def test_one_prompt_that_cant_be_served_ends_all_and_is_named() -> None:
    ranks = Ranks({0: [Silence()], 1: QueueFullError("the queue is full")})
    stream = BatchStream(ranks.begin, prompts(2))
    with pytest.raises(QueueFullError, match=r"prompt 1 \(from 0\): the queue is full"):
        await stream.start()


async def test_one_that_fails_in_the_middle_ends_all() -> None:
    long: list[RankStep] = [chunk(5, is_last=False), Silence()]
    ranks = Ranks({0: long, 1: [chunk(5, is_last=False), RequestFailedError("not finite")]})
    stream = BatchStream(ranks.begin, prompts(2))
    await stream.start()
    with pytest.raises(RequestFailedError, match="prompt 1"):
        _ = [each async for each in stream]
    stream.cancel()
    await until(lambda: ranks.begun[0].call.num_cancelled == 1, "the other is cancelled")


async def test_when_the_client_goes_all_are_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_stream, "MAX_AT_ONCE", 2)
    ranks = Ranks({place: [chunk(5, is_last=False), Silence()] for place in range(3)})
    stream = BatchStream(ranks.begin, prompts(3))
    await stream.start()
    await until(lambda: len(ranks.begun) == 2, "two have begun")
    stream.cancel()
    await until(lambda: [each.results for each in ranks.begun] == [["aborted"]] * 2, "both are aborted")
    assert [each.call.num_cancelled for each in ranks.begun] == [1, 1], "the third was never begun"
