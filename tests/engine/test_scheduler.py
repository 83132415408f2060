from __future__ import annotations

from app.config import SchedulerConfig
from app.engine.prefix_cache import PrefixCache
from app.engine.request import Request, SamplingParams
from app.engine.scheduler import Schedule, Scheduler

BLOCK = 4


def new_scheduler(num_blocks: int = 100, **config: int) -> Scheduler:
    return Scheduler(SchedulerConfig.model_validate(config), PrefixCache(num_blocks, BLOCK))


def add(scheduler: Scheduler, request_id: str, num_tokens: int, first_token: int | None = None) -> Request:
    """A request whose prompt nobody else has, unless they have the same `first_token`."""
    start = 1000 * ord(request_id) if first_token is None else first_token
    prompt = range(start, start + num_tokens)
    request = Request.new(request_id, prompt, SamplingParams(100), max_output_tokens=100)
    scheduler.add(request)
    return request


def step(scheduler: Scheduler) -> tuple[Schedule, dict[str, int]]:
    """Run one step in which every sampled request gets token 7: the schedule and tokens per request."""
    schedule = scheduler.schedule()
    tokens = {item.request.request_id: item.num_tokens for item in schedule.scheduled}
    scheduler.complete(schedule)
    for request in schedule.sampled:
        request.token_ids.append(7)
    scheduler.check_integrity()
    return schedule, tokens


def test_prompts_share_the_budget_in_order_of_arrival_and_long_ones_in_chunks() -> None:
    scheduler = new_scheduler(max_batch_tokens=10)
    for request_id, num_tokens in (("a", 4), ("b", 13), ("c", 3)):
        add(scheduler, request_id, num_tokens)
    assert step(scheduler)[1] == {"a": 4, "b": 6}
    assert step(scheduler)[1] == {"a": 1, "b": 7, "c": 2}
    assert step(scheduler)[1] == {"a": 1, "b": 1, "c": 1}


def test_only_complete_prompts_are_sampled() -> None:
    scheduler = new_scheduler(max_batch_tokens=10)
    add(scheduler, "a", 4)
    add(scheduler, "b", 13)
    schedule, _ = step(scheduler)
    assert [request.request_id for request in schedule.sampled] == ["a"]
    assert (schedule.num_prefill_tokens, schedule.num_decode_tokens) == (10, 0)
    schedule, _ = step(scheduler)
    assert [request.request_id for request in schedule.sampled] == ["a", "b"]
    assert (schedule.num_prefill_tokens, schedule.num_decode_tokens) == (7, 1)


def test_one_left_over_prompt_token_counts_as_prefill() -> None:
    scheduler = new_scheduler(max_batch_tokens=4)
    add(scheduler, "a", 5)
    step(scheduler)
    assert step(scheduler)[0].num_prefill_tokens == 1


def test_no_more_run_at_once_than_allowed_nor_than_the_budget_has_tokens() -> None:
    for config in ({"max_running_requests": 2}, {"max_batch_tokens": 2}):
        scheduler = new_scheduler(**config)
        assert scheduler.max_running_requests == 2
        for request_id in "abc":
            add(scheduler, request_id, 1)
        step(scheduler)
        assert (scheduler.num_running, scheduler.num_waiting) == (2, 1)
        assert scheduler.remove("a")
        step(scheduler)
        assert (scheduler.num_running, scheduler.num_waiting) == (2, 0)


def test_a_cached_prefix_is_not_computed_again_but_the_last_token_always_is() -> None:
    scheduler = new_scheduler()
    add(scheduler, "a", 8, first_token=0)
    step(scheduler)
    same, longer = add(scheduler, "b", 8, first_token=0), add(scheduler, "c", 11, first_token=0)
    assert step(scheduler)[1] == {"a": 1, "b": 4, "c": 3}
    assert (same.num_cached_tokens, longer.num_cached_tokens) == (4, 8)


def test_a_short_request_does_not_overtake_a_long_one_that_lacks_room() -> None:
    scheduler = new_scheduler(num_blocks=5)
    add(scheduler, "a", 8)
    step(scheduler)
    add(scheduler, "b", 16)
    add(scheduler, "c", 1)
    assert step(scheduler)[1] == {"a": 1}
    scheduler.remove("a")
    assert step(scheduler)[1] == {"b": 16}


def test_the_latest_arrived_is_preempted_and_comes_back_first_with_its_cached_blocks() -> None:
    scheduler = new_scheduler(num_blocks=6)
    add(scheduler, "a", 7)
    late = add(scheduler, "b", 7)
    step(scheduler)
    add(scheduler, "c", 1)
    schedules = [step(scheduler) for _ in range(5)]
    # Both hold 3 blocks after 8 tokens; both need a fourth for their 13th token.
    assert [schedule.num_preempted for schedule, _ in schedules] == [0, 0, 0, 0, 0]
    schedule, tokens = step(scheduler)
    assert schedule.num_preempted == 1
    assert tokens == {"a": 1}
    assert (late.num_computed_tokens, late.table.block_ids) == (0, [])
    assert scheduler.num_waiting == 2
    scheduler.remove("a")
    # 13 tokens are known. The victim's tail was overwritten by "a"; the rest is found.
    assert step(scheduler)[1] == {"b": 5, "c": 1}
    assert late.num_cached_tokens == 0


def test_a_request_preempts_itself_when_it_is_the_latest() -> None:
    scheduler = new_scheduler(num_blocks=5)
    add(scheduler, "a", 8)
    add(scheduler, "b", 8)
    step(scheduler)
    schedule, tokens = step(scheduler)
    assert schedule.num_preempted == 1
    assert tokens == {"a": 1}


def test_removing_frees_at_once_wherever_the_request_is() -> None:
    scheduler = new_scheduler(max_running_requests=1)
    add(scheduler, "a", 5)
    add(scheduler, "b", 5)
    step(scheduler)
    assert scheduler.remove("a")
    assert scheduler.remove("b")
    assert not scheduler.remove("b")
    scheduler.check_integrity()
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)


def test_pending_prefill_leaves_out_what_the_cache_has() -> None:
    scheduler = new_scheduler(max_batch_tokens=6)
    add(scheduler, "a", 10, first_token=0)
    assert scheduler.num_pending_prefill_tokens == 10
    step(scheduler)
    add(scheduler, "b", 10, first_token=0)
    assert scheduler.num_pending_prefill_tokens == 4 + 6
    assert scheduler.num_waiting_tokens == 10
