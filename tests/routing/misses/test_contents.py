"""Volatile blocks, and the place where a prompt parts from an earlier one: block, message, word."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest

from app.hashing import seed
from app.routing.decisions.decision import Decision
from app.routing.decisions.decision_log import Outcome
from app.routing.misses.miss import Miss
from app.routing.misses.miss_book import Case, MissBook
from app.text.outline import outline_of_text, outline_of_tokens
from app.text.template.message_spans import message_spans
from tests.support.routing.cores import new_core, new_prompt

BLOCK = 4
RULES = "\n".join(f"Rule {number}: never say the word number {number} aloud." for number in range(12))
Chat = list[tuple[str, str]]


class Client:
    """Sends prompts to one rank, which answers and caches each at once."""

    def __init__(self, *, with_texts: bool = False) -> None:
        self.core = new_core(dp_size=1)
        self.book = MissBook(self.core.index, 10_000, 10, lambda: 0.0)
        self.with_texts = with_texts
        self._ids = map(str, count())

    def chat(self, chat: Chat, salt: str | None = None) -> Case:
        messages = [{"role": role, "content": content} for role, content in chat]
        text = rendered(messages)
        # A token for each word, with the white space before it.
        words = text.replace("\n", " \n").split(" ")
        token_ids = [hash((salt, word)) % 2**32 for word in words]
        sizes = np.array([len(word) + (not word.startswith("\n")) for word in words], np.int64)
        sizes[0] -= not words[0].startswith("\n")
        assert sizes.sum() == len(text)
        spans = message_spans(rendered, messages, text)
        content = outline_of_text(text, spans, sizes, seed(salt), with_texts=self.with_texts)
        return self.send(token_ids, content)

    def tokens(self, token_ids: list[int]) -> Case:
        return self.send(token_ids, outline_of_tokens(token_ids, BLOCK, seed(None)))

    def send(self, token_ids: list[int], content: object) -> Case:
        prompt = new_prompt(next(self._ids), token_ids, BLOCK)
        decision: Decision = self.core.choose(prompt, 0.0)
        self.book.find(prompt, decision)
        case = self.book.note((prompt.request_id, 0), None, content)  # type: ignore[arg-type]
        assert case is not None
        outcome = Outcome(prompt.request_id, 0, "answering", cached_tokens=decision.cached_tokens)
        self.book.record_outcome(outcome)
        held = decision.cached_tokens // BLOCK
        blocks = prompt.block_hashes
        self.core.index.store(0, blocks[held:], blocks[held - 1] if held else None)
        assert sum(each.num_tokens for each in case.misses) == decision.uncached_tokens
        assert sum(self.book.tally.tokens.values()) >= decision.uncached_tokens
        return case


def rendered(messages: object) -> str:
    return "".join(f"<s>{each['role']}\n{each['content']} <e>\n" for each in messages)  # type: ignore[attr-defined]


def by_reason(misses: list[Miss]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for each in misses:
        counts[each.reason] = counts.get(each.reason, 0) + each.num_tokens
    return counts


def clocked(time: str) -> Chat:
    return [
        ("system", f"You are a clerk. The time is {time}, so hurry.\n{RULES}"),
        ("user", "Hello, who are you?"),
    ]


def test_what_comes_behind_a_clock_is_volatile_and_the_clock_is_named() -> None:
    client = Client(with_texts=True)
    assert set(by_reason(client.chat(clocked("12:01:33")).misses)) == {"new", "tail"}
    case = client.chat(clocked("12:01:47"))
    counts = by_reason(case.misses)
    assert set(counts) == {"diverged", "volatile", "tail"}
    assert (counts["diverged"], counts["volatile"] > 80) == (BLOCK, True)
    change = case.change
    assert change is not None
    assert (change.message, change.role, change.line) == (0, "system", 0)
    assert (change.before, change.after) == ("12:01:33,", "12:01:47,")
    assert change.around == ("<s>system\nYou are a clerk. The time is ", " so hurry.\n")
    assert change.token == 8


def test_what_moved_by_a_few_tokens_is_volatile_too() -> None:
    client = Client()
    client.chat(clocked("12:01"))
    case = client.chat(clocked("a quarter past twelve already"))
    assert by_reason(case.misses)["volatile"] > 80
    assert case.change is not None
    assert (case.change.message, case.change.token // BLOCK, case.change.after) == (0, 2, None)


def test_a_change_before_the_first_block_is_found_by_what_comes_behind() -> None:
    client = Client(with_texts=True)
    client.chat([("system", f"1 is today's number.\n{RULES}")])
    case = client.chat([("system", f"2 is today's number.\n{RULES}")])
    counts = by_reason(case.misses)
    assert ("diverged" in counts, counts["volatile"] > 80) == (False, True)
    assert case.change is not None
    assert (case.change.before, case.change.after, case.change.message) == ("1", "2", 0)


@pytest.mark.parametrize("with_texts", [False, True])
@pytest.mark.parametrize("changed", range(1, 5))
def test_the_right_message_is_named(changed: int, with_texts: bool) -> None:
    roles = ("system", "user", "assistant", "user", "assistant")
    said = [f"Message {number} says this and that, and a little more than that." for number in range(5)]
    client = Client(with_texts=with_texts)
    client.chat(list(zip(roles, said, strict=True)))
    said[changed] = said[changed].replace("little", "lot")
    case = client.chat(list(zip(roles, said, strict=True)))
    assert case.change is not None
    assert (case.change.message, case.change.role, case.change.line) == (changed, roles[changed], 0)
    assert (case.change.after == "lot") is with_texts


def test_only_the_words_line_is_named_among_several_short_ones() -> None:
    client = Client(with_texts=True)
    client.chat([("user", f"{RULES}\na\nb\nc and some words that follow")])
    case = client.chat([("user", f"{RULES}\na\nB\nc and some words that follow")])
    assert case.change is not None
    assert (case.change.line, case.change.before, case.change.after) == (13, "b", "B")


def test_reordered_messages_are_volatile_behind_the_place_where_they_part() -> None:
    one, other = (f"Document {name}. " + f"It is about {name} and nothing else at all. " * 6 for name in "AB")
    client = Client()
    client.chat([("system", RULES), ("user", one), ("user", other)])
    case = client.chat([("system", RULES), ("user", other), ("user", one)])
    assert by_reason(case.misses)["volatile"] > 80
    assert case.change is not None
    assert case.change.message == 1


def test_a_prompt_of_tokens_has_volatile_blocks_and_places_by_the_block() -> None:
    client = Client()
    client.tokens(list(range(100, 140)))
    case = client.tokens([*range(100, 108), 1, 2, 3, 4, *range(112, 140)])
    assert by_reason(case.misses) == {"diverged": 4, "volatile": 24, "tail": 4}
    assert case.change is not None
    assert (case.change.token, case.change.message, case.change.line) == (8, None, None)


def test_another_salts_content_isnt_known() -> None:
    client = Client()
    client.chat(clocked("12:01:33"), salt="a")
    assert set(by_reason(client.chat(clocked("12:01:47"), salt="b").misses)) == {"new", "tail"}


def test_a_conversation_that_goes_on_has_nothing_volatile_and_no_place() -> None:
    client = Client()
    client.chat([("system", RULES), ("user", "What is the first rule of them all, please?")])
    case = client.chat(
        [
            ("system", RULES),
            ("user", "What is the first rule of them all, please?"),
            ("assistant", "Never to say a certain word aloud, and no other word either."),
            ("user", "And which one would that be, if I may ask?"),
        ]
    )
    assert set(by_reason(case.misses)) == {"new", "tail"}
    assert case.change is None
