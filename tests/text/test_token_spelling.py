"""Single tokens in bytes, against what the tokenizer's own decoder makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders
from tokenizers.models import BPE

from app.text.token_spelling import TokenSpelling
from app.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer.from_folder(smollm2_dir)


@pytest.fixture(scope="module")
def byte_fallback() -> Tokenizer:
    """As SentencePiece models are converted: spaces as ▁, other bytes by their numbers, added tokens."""
    vocab = ["<unk>", "▁", "a", "▁a", "é", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = tokenizers.Tokenizer(
        BPE({token: index for index, token in enumerate(vocab)}, [("▁", "a")], byte_fallback=True)
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["</s>"])
    backend.add_tokens([AddedToken("▁added")])
    return Tokenizer(backend, eos_token_ids=[], chat_template=None)


def test_every_token_of_the_vocabulary_is_what_it_decodes_to(tokenizer: Tokenizer) -> None:
    num_parts = 0
    for token_id in range(tokenizer.vocab_size):
        spelling = tokenizer.spell(token_id)
        assert spelling.data.decode(errors="replace") == tokenizer.decode([token_id])
        num_parts += "\ufffd" in tokenizer.decode([token_id])
    assert num_parts > 100, "tokens that are part of a character"


@given(text=st.text(max_size=40))
def test_the_tokens_bytes_make_up_the_text(tokenizer: Tokenizer, text: str) -> None:
    token_ids = tokenizer.encode(text)
    data = b"".join(tokenizer.spell(token_id).data for token_id in token_ids)
    assert data.decode(errors="replace") == tokenizer.decode(token_ids)


def test_special_tokens_have_a_name_and_no_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.spell(2) == TokenSpelling(b"", "<|im_end|>")
    assert tokenizer.spell(10**6) == TokenSpelling(b"", "")


def test_bytes_that_are_no_whole_character_are_named_by_their_numbers() -> None:
    assert TokenSpelling.of_text(b" \xe8\xaa").name == r" \xe8\xaa"
    assert TokenSpelling.of_text("語".encode()).name == "語"


def test_a_vocabulary_with_byte_fallback(byte_fallback: Tokenizer) -> None:
    token_ids = byte_fallback.encode("▁aé語</s>▁added")
    spelled = [byte_fallback.spell(token_id) for token_id in token_ids]
    assert [each.data for each in spelled] == [
        b" a",
        "é".encode(),
        b"\xe8",
        b"\xaa",
        b"\x9e",
        b"",
        "▁added".encode(),
    ]
    assert [each.name for each in spelled[2:6]] == [r"\xe8", r"\xaa", r"\x9e", "</s>"]
