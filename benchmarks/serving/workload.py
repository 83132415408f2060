"""Conversations that share long prefixes: the same texts for the same shape and seed, on every machine.

    a user's third prompt = system prompt | question 0 | answer 0 | question 1 | answer 1 | question 2
                            |<- shared -->|<------ shared with the user's earlier turns ->|
                             by the group

Pure: no clock, no network. Answers come from the model under test, so the caller gives them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Message = dict[str, str]

_WORDS = re.findall(
    r"\w+",
    """
    about above after again along always another answer around because become before began behind being
    below between book both bring build call came carry change city close country course cover cross
    current dark deep different door draw drive early earth east enough even every example face fall
    family farm father feel field final find fire first fish follow food force form found friend from full
    game garden gave general give glass gold good great green ground group grow half hand hard head hear
    heat heavy help high hold home horse hour house human idea inside island keep kind king know land
    large last late laugh lead learn leave left less letter level life light line list listen little live
    long look machine made main make many map mark market matter mean measure metal might mind minute
    money month moon more morning most mother mountain move much music must name near need never next
    night north note nothing notice number ocean often once only open order other over page paper part
    pass past pattern people perhaps person picture piece place plan plane plant play point power present
    press problem produce question quick quiet rain reach read ready real reason record red rest river
    road rock room round rule run same school science sea second see seem sentence serve seven several
    shape ship short should show side simple since sing size sleep slow small snow some song soon sound
    south space special spell stand star start state stay step still stone stop story street strong study
    such summer sun surface table tail take talk teach tell thing think thought thousand through time
    together took town travel tree true turn under until usual very voice wait walk wall want warm watch
    water week weight west wheel where while white whole wind winter without wonder wood word work world
    write year young
    """,
)
"""Common words, each a single token or two."""


@dataclass(frozen=True)
class WorkloadShape:
    """Number and length of the conversations.

    Attributes:
        system_prompts: groups of users; each group has one system prompt of its own.
        users: users of each group, one conversation each.
        turns: questions of each user.
        system_words, question_words: lengths; a word is a little more than one token.
        seed: of all texts and of the order of arrival.
    """

    system_prompts: int
    users: int
    turns: int
    system_words: int
    question_words: int
    seed: int

    @property
    def num_requests(self) -> int:
        """Requests in all."""
        return self.system_prompts * self.users * self.turns


@dataclass(frozen=True)
class Conversation:
    """The system prompt and the questions of one user."""

    group: int
    system: str
    questions: tuple[str, ...]

    def messages(self, answers: Sequence[str]) -> list[Message]:
        """The prompt of the turn after `answers`, the model's answers so far."""
        messages = [_message("system", self.system)]
        for question, answer in zip(self.questions, answers, strict=False):
            messages += [_message("user", question), _message("assistant", answer)]
        return [*messages, _message("user", self.questions[len(answers)])]


def make_conversations(shape: WorkloadShape) -> list[Conversation]:
    """All users in the order of their arrival.

    The order is shuffled: groups in turn would make round robin over as many ranks keep each group on one
    rank by accident.
    """
    chance = random.Random(shape.seed)
    conversations = []
    for group in range(shape.system_prompts):
        system = f"Manual {group}. {_prose(chance, shape.system_words)}"
        for _ in range(shape.users):
            questions = tuple(_prose(chance, shape.question_words) for _ in range(shape.turns))
            conversations.append(Conversation(group, system, questions))
    chance.shuffle(conversations)
    return conversations


def make_prompt(num_words: int, seed: int) -> list[Message]:
    """One user's prompt that belongs to no conversation, for warming up and for unloaded measurements."""
    return [_message("user", _prose(random.Random(seed), num_words))]


def count_needed_tokens(
    conversations: Sequence[Conversation], answer_tokens: int, count: Callable[[list[Message]], int]
) -> tuple[int, int]:
    """KV cache tokens that all conversations need, shared ones counted once, and that the longest one needs.

    Args:
        conversations: each is taken as it is after its last answer.
        answer_tokens: tokens of each answer.
        count: tokens of a prompt.
    """
    shared = {each.group: count([_message("system", each.system)]) for each in conversations}
    lengths = [_final_tokens(each, answer_tokens, count) for each in conversations]
    own = [length - shared[each.group] for each, length in zip(conversations, lengths, strict=True)]
    return sum(shared.values()) + sum(own), max(lengths)


def _final_tokens(
    conversation: Conversation, answer_tokens: int, count: Callable[[list[Message]], int]
) -> int:
    turns = len(conversation.questions)
    return count(conversation.messages([""] * (turns - 1))) + turns * answer_tokens


def _prose(chance: random.Random, num_words: int) -> str:
    """Sentences of random words."""
    words = chance.choices(_WORDS, k=num_words)
    sentences = [words[start : start + 12] for start in range(0, num_words, 12)]
    return " ".join(" ".join(sentence).capitalize() + "." for sentence in sentences)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
