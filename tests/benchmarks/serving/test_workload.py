"""What the serving benchmark promises of its conversations."""

from __future__ import annotations

import dataclasses
import itertools

from benchmarks.serving.workload import (
    Conversation,
    Message,
    WorkloadShape,
    count_needed_tokens,
    make_conversations,
    make_prompt,
)

SHAPE = WorkloadShape(system_prompts=3, users=4, turns=3, system_words=50, question_words=12, seed=7)


def test_the_same_seed_gives_the_same_conversations_and_another_seed_others() -> None:
    assert make_conversations(SHAPE) == make_conversations(SHAPE)
    assert make_conversations(SHAPE) != make_conversations(dataclasses.replace(SHAPE, seed=8))


def test_there_are_as_many_conversations_as_the_shape_says_and_as_long() -> None:
    conversations = make_conversations(SHAPE)
    assert len(conversations) == 12
    assert sum(len(each.questions) for each in conversations) == SHAPE.num_requests == 36
    assert {len(question.split()) for each in conversations for question in each.questions} == {12}


def test_a_group_shares_its_system_prompt_and_groups_differ_from_the_start() -> None:
    conversations = make_conversations(SHAPE)
    by_group = {
        group: {each.system for each in conversations if each.group == group}
        for group in range(SHAPE.system_prompts)
    }
    assert all(len(systems) == 1 for systems in by_group.values())
    starts = {system.split()[1] for systems in by_group.values() for system in systems}
    assert len(starts) == SHAPE.system_prompts


def test_no_two_users_ask_the_same() -> None:
    questions = [question for each in make_conversations(SHAPE) for question in each.questions]
    assert len(set(questions)) == len(questions)


def test_groups_do_not_arrive_in_turn() -> None:
    groups = [each.group for each in make_conversations(SHAPE)]
    in_turn = [position % SHAPE.system_prompts for position in range(len(groups))]
    assert sorted(groups) == sorted(in_turn)
    assert groups != in_turn


def test_each_turn_extends_the_one_before_by_its_answer_and_a_question() -> None:
    conversation = make_conversations(SHAPE)[0]
    answers = ["one", "two"]
    prompts = [conversation.messages(answers[:turn]) for turn in range(SHAPE.turns)]
    for (earlier, later), answer in zip(itertools.pairwise(prompts), answers, strict=True):
        assert later[: len(earlier)] == earlier
        assert [message["role"] for message in later[len(earlier) :]] == ["assistant", "user"]
        assert later[len(earlier)]["content"] == answer


def test_a_warm_up_prompt_shares_nothing_with_a_conversation() -> None:
    assert make_prompt(20, seed=1) == make_prompt(20, seed=1)
    assert make_prompt(20, seed=1)[0]["content"] not in str(make_conversations(SHAPE))


def test_needed_tokens_count_a_shared_system_prompt_once() -> None:
    conversations = [Conversation(0, "a b c", ("d e", "f")), Conversation(0, "a b c", ("g", "h"))]
    # 3 shared; 3 words and two answers of 10, then 2 words and two answers of 10.
    assert count_needed_tokens(conversations, 10, _count_words) == (3 + 23 + 22, 3 + 23)


def _count_words(messages: list[Message]) -> int:
    return sum(len(message["content"].split()) for message in messages)
