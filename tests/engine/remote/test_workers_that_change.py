"""Workers that are down, come back, differ from the settings, or are adopted late."""

from __future__ import annotations

import pytest

from app.engine.remote.worker import Expected
from app.errors import EngineFailedError
from app.generation import SamplingParams
from tests.engine.remote.conftest import NewRemote, NewWorker, until_available
from tests.support.deadlines import until
from tests.support.engine.live_engine import all_of, error_of, new_request, tokens
from tests.support.engine.live_rank import answer
from tests.support.engine.recorded import Recorded
from tests.support.free_ports import find_free_ports

PROMPT = list(range(5, 26))
GREEDY = SamplingParams(4, temperature=0.0, ignore_eos=True)


async def test_a_worker_that_is_down_is_an_unavailable_rank_until_it_comes(
    new_worker: NewWorker, new_remote: NewRemote
) -> None:
    worker, recorded = await new_worker(is_started=False), Recorded()
    engine = new_remote(worker.url, recorded)
    await until(lambda: "/server_info: " in (engine.status.unavailable or ""), lambda: engine.status)
    engine.check_health()
    raised = await error_of(engine.admit(new_request("a", PROMPT, GREEDY)))
    assert isinstance(raised, EngineFailedError)
    assert recorded.acknowledged == ["a"]
    await worker.start()
    await until_available(engine)
    assert len(tokens(await all_of(engine.admit(new_request("b", PROMPT, GREEDY))))) == 4


async def test_a_restarted_worker_is_followed_again(new_worker: NewWorker, new_remote: NewRemote) -> None:
    worker, recorded = await new_worker(), Recorded()
    engine = new_remote(worker.url, recorded)
    await until_available(engine)
    await all_of(engine.admit(new_request("a", PROMPT, GREEDY)))
    await until(lambda: recorded.hashes, "stored")
    await worker.stop()
    await until(lambda: engine.status.unavailable is not None, "seen to be down")
    # On other event ports, with another number of ranks.
    successor = await new_worker(port=worker.port, is_started=False)
    successor.behaviour.info = {"dp_size": 2}
    await successor.start()
    expected = f"{worker.url}: it has 2 DP ranks; remote_ranks.workers says dp_size = 1"
    await until(lambda: engine.status.unavailable == expected, lambda: engine.status)
    successor.behaviour.info = {}
    await until_available(engine)
    await until(lambda: engine.status.partial_cache is None, lambda: engine.status)
    assert recorded.hashes == set()
    await all_of(engine.admit(new_request("b", PROMPT, GREEDY)))
    await until(lambda: len(recorded.hashes) == 6, lambda: recorded.hashes)


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (
            {"model_path": "/models/other", "served_model_name": "other"},
            "it serves /models/other, other; model",
        ),
        ({"kv_events": {"publisher": "zmq"}}, "/server_info: kv_events.dp_size is missing"),
    ],
)
async def test_what_does_not_fit_is_said(
    info: dict[str, object], reason: str, new_worker: NewWorker, new_remote: NewRemote
) -> None:
    worker = await new_worker()
    worker.behaviour.info = info
    engine = new_remote(worker.url)
    await until(lambda: reason in (engine.status.unavailable or ""), lambda: engine.status)


async def test_a_worker_that_would_mix_tenants_is_left_out(
    new_worker: NewWorker, new_remote: NewRemote
) -> None:
    worker = await new_worker()
    worker.behaviour.info = {"version": "0.5.22"}
    engine = new_remote(worker.url, expected=Expected(1, frozenset(("tiny",)), 64, has_tenants=True))
    await until(lambda: "keeps tenants apart" in (engine.status.unavailable or ""), lambda: engine.status)
    await until_available(new_remote(worker.url))


async def test_a_server_that_is_no_worker_is_said(new_remote: NewRemote, new_worker: NewWorker) -> None:
    worker = await new_worker()
    engine = new_remote(worker.url + "/elsewhere")
    await until(lambda: "neither a /server_info" in (engine.status.unavailable or ""), lambda: engine.status)
    absent = new_remote(f"http://127.0.0.1:{find_free_ports(1)}", expected=Expected(1, frozenset(), 64))
    await until(lambda: "connect" in (absent.status.unavailable or ""), lambda: absent.status)


async def test_vllm_without_its_scale_out_api_is_said(new_worker: NewWorker, new_remote: NewRemote) -> None:
    worker = await new_worker(is_vllm=True)
    worker.behaviour.has_scale_out = False
    engine = new_remote(worker.url)
    await until(lambda: "--enable-scale-out" in (engine.status.unavailable or ""), lambda: engine.status)
    worker.behaviour.has_scale_out = True
    await until_available(engine)


async def test_without_events_the_rank_serves_and_claims_nothing(
    new_worker: NewWorker, new_remote: NewRemote
) -> None:
    worker = await new_worker()
    worker.behaviour.info = {"kv_events": None}
    engine = new_remote(worker.url)
    await until_available(engine)
    await until(
        lambda: "publishes no KV events" in (engine.status.partial_cache or ""), lambda: engine.status
    )
    assert len(tokens(await all_of(engine.admit(new_request("a", PROMPT, GREEDY))))) == 4
    stat = engine.load
    assert (stat.total_prefill_uncached_tokens, stat.num_running_reqs) == (21, 0)
    assert stat.total_prefill_busy_us > 0, "measured from our own requests"


async def test_vllms_metrics_are_its_load(new_worker: NewWorker, new_remote: NewRemote) -> None:
    worker = await new_worker(is_vllm=True)
    engine = new_remote(worker.url)
    await until_available(engine)
    await until(lambda: engine.load.num_running_reqs == 2, lambda: engine.load)
    assert (engine.load.num_waiting_reqs, engine.load.num_tokens) == (1, 64)
    assert engine.load.max_total_num_tokens == 256


@pytest.mark.parametrize("is_vllm", [False, True], ids=["native", "vllm"])
async def test_reset_asks_the_worker(is_vllm: bool, new_worker: NewWorker, new_remote: NewRemote) -> None:
    worker, recorded = await new_worker(is_vllm=is_vllm), Recorded()
    await answer(worker.rank.generate(PROMPT, GREEDY))
    engine = new_remote(worker.url, recorded)
    await until_available(engine)
    await until(lambda: recorded.hashes, "stored")
    with pytest.raises(EngineFailedError, match="isn't served"):
        await engine.reset_cache()
    worker.behaviour.flush_status = 200
    assert await engine.reset_cache()
    await until(lambda: not recorded.hashes, "cleared")


@pytest.mark.parametrize("is_vllm", [False, True], ids=["native", "vllm"])
async def test_a_worker_adopted_late_is_partial_until_its_cache_is_flushed(
    is_vllm: bool, new_worker: NewWorker, new_remote: NewRemote
) -> None:
    worker, recorded = await new_worker(is_vllm=is_vllm, buffer_steps=2), Recorded()
    for start in (0, 100, 200):
        await answer(worker.rank.generate(list(range(start, start + 21)), GREEDY))
    engine = new_remote(worker.url, recorded)
    await until_available(engine)
    await until(lambda: "partial" in (engine.status.partial_cache or ""), lambda: engine.status)
    seen = set(recorded.hashes)
    assert 0 < len(seen) < 18
    again = list(range(21))
    chunks = await all_of(engine.admit(new_request("a", again, GREEDY)))
    assert chunks[-1].num_cached_tokens == 20, "more is cached than was seen, and it is served all the same"
    assert worker.num_flushes == 0

    flushing = new_remote(worker.url, Recorded(), may_flush=True)
    await until(
        lambda: "it can't be flushed" in (flushing.status.partial_cache or ""), lambda: flushing.status
    )
    worker.behaviour.flush_status = 200
    await until(lambda: flushing.status.partial_cache is None, lambda: flushing.status)
    await until(lambda: engine.status.partial_cache is None, lambda: engine.status)
    assert worker.num_flushes == 1
    assert recorded.hashes == set()
