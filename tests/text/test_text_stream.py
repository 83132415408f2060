"""TextStream: whole characters, no stop string, and all pieces together are the decoded text."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.decoders import ByteFallback, Fuse, Replace, Strip
from tokenizers.decoders import Sequence as DecoderSequence
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from app.errors import InvalidRequestError
from app.text.text_stream import TextStream
from app.text.tokenizer import Tokenizer

IM_END = 2
VOCAB_SIZE = 49152
# Ids 17 to 251 are single bytes, taken often so that invalid and unfinished characters are common.
TOKEN_IDS = st.lists(st.one_of(st.integers(17, 251), st.integers(0, VOCAB_SIZE - 1)), max_size=60)
LETTERS = st.sampled_from("aab \n7é漢字😀👩\u200d👧\u0301\ufffd")
TEXT = st.text(alphabet=st.one_of(LETTERS, st.characters(codec="utf-8")))


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer.from_folder(smollm2_dir)


@pytest.fixture(scope="module")
def byte_id(smollm2_dir: Path) -> dict[int, int]:
    """Byte → the id of the token that is this byte alone, for the bytes of é and 😀."""
    vocab = json.loads((smollm2_dir / "tokenizer.json").read_text())["model"]["vocab"]
    alphabet = ByteLevel(add_prefix_space=False, use_regex=False)
    ids: dict[int, int] = {}
    for text in ("é", "😀"):
        [(symbols, _)] = alphabet.pre_tokenize_str(text)
        ids |= {byte: vocab[symbol] for byte, symbol in zip(text.encode(), symbols, strict=True)}
    return ids


def run(stream: TextStream, token_ids: Iterable[int]) -> str:
    return "".join(stream.push(token_id) for token_id in token_ids) + stream.flush()


def until_stop(text: str, stop: Sequence[str]) -> tuple[str, str | None]:
    """A naive matcher: the match that is complete first, the longest of several."""
    for end in range(len(text) + 1):
        ending = [s for s in stop if text[:end].endswith(s)]
        if ending:
            matched = max(ending, key=len)
            return text[: end - len(matched)], matched
    return text, None


@given(token_ids=TOKEN_IDS)
@settings(max_examples=400, deadline=None)
def test_pieces_add_up_for_any_ids(tokenizer: Tokenizer, token_ids: list[int]) -> None:
    assert run(tokenizer.text_stream(), token_ids) == tokenizer.decode(token_ids)


@given(text=TEXT)
@settings(max_examples=200, deadline=None)
def test_pieces_add_up_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    assert run(tokenizer.text_stream(), tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))


@given(token_ids=TOKEN_IDS, stop=st.lists(st.text("ab\ufffd ,", min_size=1, max_size=4), max_size=4))
@settings(max_examples=400, deadline=None)
def test_text_ends_before_the_first_stop_string(
    tokenizer: Tokenizer, token_ids: list[int], stop: list[str]
) -> None:
    stream = tokenizer.text_stream(tuple(stop))
    text, matched = run(stream, token_ids), stream.matched
    assert (text, matched) == until_stop(tokenizer.decode(token_ids), stop)


@given(text=TEXT, data=st.data())
@settings(max_examples=200, deadline=None)
def test_stop_strings_out_of_the_text_itself(tokenizer: Tokenizer, text: str, data: st.DataObject) -> None:
    token_ids = tokenizer.encode(text)
    decoded = tokenizer.decode(token_ids)
    cuts = st.tuples(st.integers(0, len(decoded)), st.integers(1, 5)).map(lambda c: decoded[c[0] : sum(c)])
    stop = [s for s in data.draw(st.lists(cuts, max_size=3)) if s]
    stream = tokenizer.text_stream(stop)
    assert (run(stream, token_ids), stream.matched) == until_stop(decoded, stop)


def test_never_half_a_character(tokenizer: Tokenizer, byte_id: dict[int, int]) -> None:
    stream = tokenizer.text_stream()
    assert [stream.push(byte_id[byte]) for byte in "😀".encode()] == ["", "", "", "😀"]


def test_an_invalid_byte_is_released_by_the_next_character(
    tokenizer: Tokenizer, byte_id: dict[int, int]
) -> None:
    stream = tokenizer.text_stream()
    assert stream.push(byte_id[0xF0]) == ""
    assert stream.push(tokenizer.encode("a")[0]) == "\ufffda"


def test_invalid_bytes_without_end_do_not_hold_back_forever(
    tokenizer: Tokenizer, byte_id: dict[int, int]
) -> None:
    stream = tokenizer.text_stream()
    pieces = [stream.push(byte_id[0xF0]) for _ in range(100)]
    assert "".join(pieces) == "\ufffd" * 97
    assert stream.flush() == "\ufffd" * 3


def test_an_unfinished_character_comes_out_at_the_end(tokenizer: Tokenizer, byte_id: dict[int, int]) -> None:
    stream = tokenizer.text_stream()
    assert stream.push(byte_id[0xF0]) + stream.push(byte_id[0x9F]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_special_tokens_have_no_text_even_inside_a_character(
    tokenizer: Tokenizer, byte_id: dict[int, int]
) -> None:
    stream = tokenizer.text_stream()
    first, *rest = [byte_id[byte] for byte in "é".encode()]
    assert run(stream, [first, IM_END, *rest]) == "é"


def test_ids_beyond_the_vocabulary_have_no_text(tokenizer: Tokenizer) -> None:
    assert run(tokenizer.text_stream(), [VOCAB_SIZE + 5, *tokenizer.encode("ok"), 2**31]) == "ok"


def test_a_stop_string_across_token_borders(tokenizer: Tokenizer) -> None:
    stream = tokenizer.text_stream(("lo wor",))
    token_ids = [tokenizer.encode(letter)[0] for letter in "hello world"]
    assert [stream.push(token_id) for token_id in token_ids] == ["h", "e", "", "l", *[""] * 7]
    assert stream.matched == "lo wor"
    assert stream.flush() == ""


def test_held_text_is_released_when_it_was_no_stop_string(tokenizer: Tokenizer) -> None:
    stream = tokenizer.text_stream(("abcd",))
    token_ids = [tokenizer.encode(letter)[0] for letter in "ababcx"]
    assert [stream.push(token_id) for token_id in token_ids] == ["", "", "ab", "", "", "abcx"]
    assert stream.matched is None


def test_a_held_beginning_comes_out_at_the_end(tokenizer: Tokenizer) -> None:
    stream = tokenizer.text_stream(("###",))
    assert run(stream, tokenizer.encode("done ##")) == "done ##"
    assert stream.matched is None


def test_an_empty_stop_string_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="empty string") as caught:
        tokenizer.text_stream(("a", ""))
    assert caught.value.param == "stop"


def test_cost_is_linear(tokenizer: Tokenizer, byte_id: dict[int, int]) -> None:
    """Twenty times the tokens may cost at most sixty times the time, for words and for invalid bytes."""
    for token_ids in (tokenizer.encode("some words 漢字 "), [byte_id[0xF0], byte_id[0x9F]]):
        few, many = (_seconds(tokenizer, token_ids * (count // len(token_ids))) for count in (400, 8000))
        assert many < 60 * few


def _seconds(tokenizer: Tokenizer, token_ids: list[int]) -> float:
    def once() -> float:
        start = time.process_time()
        run(tokenizer.text_stream(), token_ids)
        return time.process_time() - start

    return min(once() for _ in range(3))


@pytest.fixture(scope="module")
def sentencepiece_like() -> tokenizers.Tokenizer:
    """Byte fallback and a decoder that strips the text's first space, as Llama 2's."""
    symbols = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefgh", "▁a", "▁b"]
    vocab = {symbol: token_id for token_id, symbol in enumerate(symbols)}
    merges = [("▁", "a"), ("▁", "b")]
    tokenizer = tokenizers.Tokenizer(BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = DecoderSequence([Replace("▁", " "), ByteFallback(), Fuse(), Strip(" ", 1, 0)])
    return tokenizer


@given(text=st.text("aab é漢😀"))
@settings(max_examples=300, deadline=None)
def test_pieces_add_up_with_byte_fallback(sentencepiece_like: tokenizers.Tokenizer, text: str) -> None:
    token_ids = sentencepiece_like.encode(text).ids
    stream = TextStream(sentencepiece_like.decode, lambda token_id: token_id == 0)
    pieces = [stream.push(token_id) for token_id in token_ids]
    assert "".join(pieces) + stream.flush() == sentencepiece_like.decode(token_ids) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_stop_strings_are_not_looked_for_in_the_first_tokens_text(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("one two one two")
    assert len(token_ids) == 4
    for min_tokens, text in ((0, "one"), (1, "one"), (2, "one two one"), (3, "one two one"), (4, None)):
        stream = tokenizer.text_stream((" two",), min_tokens)
        assert run(stream, token_ids) == (text or "one two one two")
        assert stream.matched == (None if text is None else " two")


def test_a_stop_string_is_not_found_across_the_end_of_the_first_tokens(tokenizer: Tokenizer) -> None:
    stream = tokenizer.text_stream(("one two",), 1)
    assert run(stream, tokenizer.encode("one two one two")) == "one two "
