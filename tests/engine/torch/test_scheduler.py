from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.cache.prefix_cache import PrefixCache
from app.engine.torch.request import Request, Status
from app.engine.torch.schedule import Schedule
from app.engine.torch.scheduler import Scheduler
from app.generation import SamplingParams
from app.settings.engine import SchedulerConfig
from tests.support.examples import examples

BLOCK = 4


def new_scheduler(num_blocks: int = 100, **config: int) -> Scheduler:
    return Scheduler(SchedulerConfig.model_validate(config), PrefixCache(num_blocks, BLOCK))


def add(
    scheduler: Scheduler, request_id: str, num_tokens: int, first_token: int | None = None, priority: int = 0
) -> Request:
    """A request whose prompt no other has, unless they have the same `first_token`."""
    start = 1000 * ord(request_id) if first_token is None else first_token
    prompt = range(start, start + num_tokens)
    params = SamplingParams(100)
    request = Request.new(request_id, prompt, params, max_output_tokens=100, priority=priority)
    scheduler.add([request])
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


def test_half_of_the_budget_is_the_firsts_and_the_shortest_get_the_rest() -> None:
    scheduler = new_scheduler(max_batch_tokens=10)
    for request_id, num_tokens in (("a", 40), ("b", 13), ("c", 3)):
        add(scheduler, request_id, num_tokens)
    assert step(scheduler)[1] == {"a": 5, "c": 3, "b": 2}
    assert step(scheduler)[1] == {"c": 1, "a": 5, "b": 4}
    assert step(scheduler)[1] == {"c": 1, "a": 5, "b": 4}
    assert step(scheduler)[1] == {"c": 1, "a": 6, "b": 3}
    assert step(scheduler)[1] == {"b": 1, "c": 1, "a": 8}


def test_what_the_first_does_not_need_is_the_others() -> None:
    scheduler = new_scheduler(max_batch_tokens=10)
    for request_id, num_tokens in (("a", 2), ("b", 13), ("c", 3)):
        add(scheduler, request_id, num_tokens)
    assert step(scheduler)[1] == {"a": 2, "c": 3, "b": 5}


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    scheduler = new_scheduler(max_batch_tokens=10)
    long = add(scheduler, "a", 200)
    for number in range(20):
        short = add(scheduler, chr(200 + number), 4)
        step(scheduler)
        assert short.num_output_tokens == 1
        scheduler.remove(short)
    assert long.num_computed_tokens == 20 * 6


def test_a_flood_of_short_prompts_leaves_half_to_a_long_one() -> None:
    scheduler = new_scheduler(max_batch_tokens=10)
    long = add(scheduler, "a", 200)
    for number in range(20):
        for short in range(4):
            add(scheduler, chr(200 + 4 * number + short), 5)
        for request in step(scheduler)[0].sampled:
            scheduler.remove(request)
    assert long.num_computed_tokens == 20 * 5


def test_a_lower_priority_number_is_served_first_in_any_order_of_arrival() -> None:
    scheduler = new_scheduler(max_batch_tokens=10)
    add(scheduler, "a", 30)
    add(scheduler, "b", 3, priority=1)
    add(scheduler, "c", 12, priority=-1)
    assert step(scheduler)[1] == {"c": 10}
    assert step(scheduler)[1] == {"c": 2, "a": 8}
    assert step(scheduler)[1] == {"c": 1, "a": 9}


def test_the_lowest_priority_is_preempted_first_then_the_latest() -> None:
    scheduler = new_scheduler(num_blocks=8)
    for request_id, priority in (("a", 1), ("b", 0), ("c", 0)):
        add(scheduler, request_id, 7, priority=priority)
    assert step(scheduler)[1] == {"a": 7, "b": 7, "c": 7}
    assert step(scheduler)[1] == {"a": 1, "b": 1, "c": 1}
    for _ in range(8):
        assert step(scheduler)[1] == {"b": 1, "c": 1}
    assert step(scheduler)[1] == {"b": 1}
    assert scheduler.num_waiting == 2


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
        first, *_ = [add(scheduler, request_id, 1) for request_id in "abc"]
        step(scheduler)
        assert (scheduler.num_running, scheduler.num_waiting) == (2, 1)
        scheduler.remove(first)
        step(scheduler)
        assert (scheduler.num_running, scheduler.num_waiting) == (2, 0)


def test_a_cached_prefix_is_not_computed_again_but_the_last_token_always_is() -> None:
    scheduler = new_scheduler()
    add(scheduler, "a", 8, first_token=0)
    step(scheduler)
    same, longer = add(scheduler, "b", 8, first_token=0), add(scheduler, "c", 11, first_token=0)
    assert step(scheduler)[1] == {"a": 1, "b": 4, "c": 3}
    assert (same.num_cached_tokens, longer.num_cached_tokens) == (4, 8)


def test_one_that_lacks_room_is_overtaken_no_more_often_than_requests_may_run() -> None:
    scheduler = new_scheduler(num_blocks=12, max_running_requests=3)
    hog = add(scheduler, "a", 20)
    step(scheduler)
    long = add(scheduler, "b", 36)
    for request_id in "xyz":
        overtaker = add(scheduler, request_id, 1)
        assert step(scheduler)[1] == {"a": 1, request_id: 1}
        scheduler.remove(overtaker)
    late = add(scheduler, "c", 1)
    for _ in range(3):
        assert step(scheduler)[1] == {"a": 1}
    assert (long.num_overtaken, late.num_output_tokens) == (3, 0)
    scheduler.remove(hog)
    assert step(scheduler)[1] == {"b": 36, "c": 1}


def test_a_lower_priority_never_overtakes_one_that_lacks_room() -> None:
    scheduler = new_scheduler(num_blocks=6)
    hog = add(scheduler, "a", 8)
    step(scheduler)
    add(scheduler, "b", 16)
    add(scheduler, "c", 1, priority=1)
    assert step(scheduler)[1] == {"a": 1}
    scheduler.remove(hog)
    assert step(scheduler)[1] == {"b": 16, "c": 1}


def test_no_block_is_computed_twice_at_once() -> None:
    scheduler = new_scheduler(max_batch_tokens=16)
    first = add(scheduler, "a", 30, first_token=0)
    same = add(scheduler, "b", 30, first_token=0)
    shorter = add(scheduler, "c", 22, first_token=0)
    # "c" would be the shortest, but what it needs next is being computed for "a".
    assert step(scheduler)[1] == {"a": 16}
    assert step(scheduler)[1] == {"a": 14}
    assert step(scheduler)[1] == {"a": 1, "c": 2, "b": 2}
    assert first.table.block_ids[:5] == same.table.block_ids[:5] == shorter.table.block_ids[:5]
    assert [request.num_cached_tokens for request in (first, same, shorter)] == [0, 28, 20]


def test_one_in_the_middle_of_its_prompt_leaves_out_what_another_has_computed_meanwhile() -> None:
    scheduler = new_scheduler(max_batch_tokens=8, num_blocks=40)
    long = add(scheduler, "a", 60, first_token=0)
    step(scheduler)
    urgent = add(scheduler, "b", 30, first_token=0, priority=-1)
    tokens = [step(scheduler)[1] for _ in range(3)]
    assert tokens == [{"b": 8}, {"b": 8}, {"b": 6}]
    assert step(scheduler)[1] == {"b": 1, "a": 7}
    assert long.table.block_ids[:7] == urgent.table.block_ids[:7]
    assert (long.num_computed_tokens, scheduler.num_pending_prefill_tokens) == (35, 25)


def test_samples_of_a_prompt_start_from_the_firsts_full_blocks() -> None:
    scheduler = new_scheduler(max_batch_tokens=16)
    samples = [
        Request.new("a", range(22), SamplingParams(100), max_output_tokens=100, index=index)
        for index in range(3)
    ]
    scheduler.add(samples)
    assert (scheduler.num_waiting, scheduler.num_pending_prefill_tokens) == (3, 22 + 2 + 2)
    computed = []
    for _ in range(3):
        computed.append([item.num_tokens for item in step(scheduler)[0].scheduled])
    assert computed == [[16], [6], [1, 2, 2]]
    assert len({tuple(request.table.block_ids[:5]) for request in samples}) == 1
    assert len({request.table.block_ids[5] for request in samples}) == 3


def test_the_latest_arrived_is_preempted_and_comes_back_first_with_its_cached_blocks() -> None:
    scheduler = new_scheduler(num_blocks=6)
    early = add(scheduler, "a", 7)
    late = add(scheduler, "b", 7)
    step(scheduler)
    add(scheduler, "c", 10)
    # Both hold 3 blocks after 8 tokens; both need a fourth for their 13th token.
    for _ in range(5):
        step(scheduler)
        assert (early.status, late.status) == (Status.RUNNING, Status.RUNNING)
    assert step(scheduler)[1] == {"a": 1}
    assert (early.status, late.status) == (Status.RUNNING, Status.WAITING)
    assert (late.num_computed_tokens, late.table.block_ids) == (0, [])
    assert scheduler.num_waiting == 2
    scheduler.remove(early)
    # 13 tokens are known. The victim's tail was overwritten by "a"; the rest is found.
    assert step(scheduler)[1] == {"b": 5}
    assert late.num_cached_tokens == 0


def test_a_request_preempts_itself_when_it_is_the_latest() -> None:
    scheduler = new_scheduler(num_blocks=5)
    first = add(scheduler, "a", 8)
    second = add(scheduler, "b", 8)
    step(scheduler)
    assert step(scheduler)[1] == {"a": 1}
    assert (first.status, second.status) == (Status.RUNNING, Status.WAITING)


def test_removing_frees_at_once_wherever_the_request_is() -> None:
    scheduler = new_scheduler(max_running_requests=1)
    running, waiting = add(scheduler, "a", 5), add(scheduler, "b", 5)
    step(scheduler)
    scheduler.remove(running)
    scheduler.remove(waiting)
    scheduler.check_integrity()
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)
    assert (running.status, waiting.status) == (Status.ENDED, Status.ENDED)


def test_pending_prefill_leaves_out_what_the_cache_has() -> None:
    scheduler = new_scheduler(max_batch_tokens=6)
    add(scheduler, "a", 10, first_token=0)
    assert scheduler.num_pending_prefill_tokens == 10
    step(scheduler)
    add(scheduler, "b", 10, first_token=0)
    assert scheduler.num_pending_prefill_tokens == 4 + 6
    assert scheduler.num_waiting_tokens == 10


def test_one_preempted_after_a_reset_comes_back() -> None:
    cache = PrefixCache(9, BLOCK)
    scheduler = Scheduler(SchedulerConfig(), cache)
    early, late = add(scheduler, "a", 8, first_token=0), add(scheduler, "b", 9, first_token=0)
    step(scheduler)
    cache.reset()
    while scheduler.num_running == 2 or late.num_computed_tokens == 0:
        step(scheduler)
    assert scheduler.num_waiting == 1
    scheduler.remove(early)
    assert list(step(scheduler)[1]) == ["b"]


JOBS = st.lists(
    st.tuples(
        st.integers(0, 20),  # step of arrival
        st.sampled_from([1, 3, 9, 17, 30]),  # prompt tokens
        st.integers(1, 10),  # output tokens
        st.sampled_from([0, 0, 0, 1]),  # priority
        st.sampled_from([0, 0, 500]),  # first token: many have the same prefix
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=examples(100), deadline=None)
@given(
    jobs=JOBS,
    num_blocks=st.integers(10, 20),
    max_batch_tokens=st.integers(1, 20),
    max_running_requests=st.integers(1, 6),
    reset_at=st.integers(0, 40),
)
def test_every_request_ends_and_the_first_of_the_running_gets_on_in_every_step(
    jobs: list[tuple[int, int, int, int, int]],
    num_blocks: int,
    max_batch_tokens: int,
    max_running_requests: int,
    reset_at: int,
) -> None:
    config = SchedulerConfig(max_batch_tokens=max_batch_tokens, max_running_requests=max_running_requests)
    cache = PrefixCache(num_blocks, BLOCK)
    scheduler = Scheduler(config, cache)
    arrivals = sorted(jobs, reverse=True)
    outputs: dict[Request, int] = {}
    num_work = sum(prompt + output for _, prompt, output, _, _ in jobs)
    num_steps = 0
    while arrivals or outputs:
        while arrivals and (arrivals[-1][0] <= num_steps or not outputs):
            _, num_prompt, num_output, priority, first_token = arrivals.pop()
            request_id = str(len(arrivals))
            request = add(scheduler, request_id, num_prompt, first_token, priority)
            outputs[request] = num_output
        if num_steps == reset_at:
            cache.reset()
        schedule, _ = step(scheduler)
        running = [request for request in outputs if request.table.block_ids]
        first = min(running, key=lambda request: request.order)
        assert first in {item.request for item in schedule.scheduled}
        for request in schedule.sampled:
            if request.num_output_tokens == outputs[request]:
                scheduler.remove(request)
                del outputs[request]
        num_steps += 1
        assert num_steps <= 2 * num_work, "a request waits for ever"
    assert cache.num_free_blocks == num_blocks
