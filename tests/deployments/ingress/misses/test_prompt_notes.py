"""Notes of prompts: what routers get of each kind of prompt, and that no answer waits for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from app.api.bodies import PromptBody
from app.api.openai.requests import parse_chat, parse_text
from app.deployments.ingress.misses.prompt_notes import PromptNotes
from app.deployments.ingress.request_reader import PreparedRequest
from app.deployments.messages import Assignment, ChooseRequest, FoundMisses, PromptNote
from app.generation import GenerateRequest, SamplingParams
from app.routing.misses.miss import Miss
from app.settings.model import ModelConfig
from app.text.chat_prompt import ChatPrompter, PromptSource
from app.text.tokenizer import Tokenizer
from tests.support.deadlines import until

FOUND = FoundMisses([Miss("new", 0, 8)], None)
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
CHOOSE = ChooseRequest("r", [1, 2], 8)


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer.from_folder(smollm2_dir)


class Routers:
    """Answer every note with the same."""

    def __init__(self, found: FoundMisses | None = FOUND) -> None:
        self.notes: list[PromptNote] = []
        self._found = found

    async def note_prompts(self, notes: Sequence[PromptNote]) -> list[FoundMisses | None]:
        self.notes += notes
        return [self._found] * len(notes)


def notes(
    routers: Routers, tokenizer: Tokenizer, *, num_routers: int = 1, texts: bool = False
) -> PromptNotes:
    return PromptNotes(routers, tokenizer, block_size=4, num_routers=num_routers, with_texts=texts)


def prepared(tokenizer: Tokenizer, prompt: str | list[int] | None = None) -> PreparedRequest[PromptBody]:
    """A text, tokens, or a chat if neither is given."""
    body: PromptBody
    if prompt is None:
        body = chat = parse_chat(msgspec.json.encode({"messages": MESSAGES}))
        made = ChatPrompter(tokenizer, ModelConfig()).prompt(chat.chat())
        source, token_ids = made.source, made.token_ids
    else:
        body = parse_text(b'{"prompt": "a"}')
        is_text = isinstance(prompt, str)
        source = PromptSource(prompt) if is_text else PromptSource()  # type: ignore[arg-type]
        token_ids = tokenizer.encode(prompt) if is_text else prompt  # type: ignore[arg-type,assignment]
    generate = GenerateRequest("r", token_ids, SamplingParams(1))
    return PreparedRequest(body, generate, None, None, source, "label")


async def test_a_choice_is_noted_and_its_misses_are_reported(tokenizer: Tokenizer) -> None:
    routers = Routers()
    request = notes(routers, tokenizer).of(prepared(tokenizer, list(range(10))))
    request.on_choice(CHOOSE, Assignment(2, "replica"), 7)
    assert routers.notes == []  # the rank is called first
    await until(lambda: bool(request.report.missed()), "the misses")
    (note,) = routers.notes
    assert (note.request_id, note.choice_seq, note.rank, note.tenant) == ("r", 7, 2, "label")
    assert note.block_hashes == ()
    assert note.outline is not None
    assert note.outline.ends == [4, 8]


async def test_several_routers_learn_the_blocks_too(tokenizer: Tokenizer) -> None:
    routers = Routers(None)
    request = notes(routers, tokenizer, num_routers=2).of(prepared(tokenizer, "a text"))
    request.on_choice(CHOOSE, Assignment(2, "replica"), 7)
    await until(lambda: bool(routers.notes), "the note")
    assert routers.notes[0].block_hashes == [1, 2]


@pytest.mark.parametrize("texts", [False, True])
def test_a_chat_has_messages_and_its_texts_only_where_they_are_allowed(
    tokenizer: Tokenizer, texts: bool
) -> None:
    outline = notes(Routers(), tokenizer, texts=texts).outline(prepared(tokenizer))
    assert outline.roles == ["system", "user"]
    assert outline.messages == [0, 1, 2]
    assert bool(outline.texts) is bool(outline.token_sizes) is texts
    if texts:
        assert "".join(outline.texts) == prepared(tokenizer).source.text


def test_a_texts_pieces_end_where_its_tokens_do(tokenizer: Tokenizer) -> None:
    text = "".join(f"This is line {number}, which ends with a full stop. Ä€\n" for number in range(5))
    outline = notes(Routers(), tokenizer).outline(prepared(tokenizer, text))
    lines = text.splitlines(keepends=True)
    lengths = [len(tokenizer.encode("".join(lines[: number + 1]))) for number in range(5)]
    assert outline.ends == lengths
    assert outline.lines == list(range(5))
