"""A prompt's content by pieces: together they are all of it, and equal content has equal names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from app.errors import InvalidRequestError
from app.hashing import seed
from app.text.outline import Outline, Span, outline_of_text, outline_of_tokens
from app.text.template.message_spans import message_spans

LONG = "This line has more than thirty-two characters.\n"


def outline(text: str, spans: list[Span] | None = None, salt: str | None = None) -> Outline:
    """Of a text whose tokens have four bytes each, the last one fewer."""
    size = len(text.encode())
    sizes = np.array([4] * (size // 4) + [size % 4] * (size % 4 > 0), np.int64)
    return outline_of_text(text, spans or [], sizes, seed(salt), with_texts=True)


def test_pieces_are_lines_or_several_short_ones() -> None:
    found = outline(LONG + "a\nb\n" + LONG + "end")
    assert found.texts == [LONG, "a\nb\n" + LONG, "end"]
    assert found.lines == [0, 1, 4]
    assert found.ends == [12, 25, 26]
    assert (found.roles, found.messages) == ([], [])


def test_a_long_line_is_cut_at_the_ends_of_sentences_and_of_json_objects() -> None:
    sentence, tool = "word " * 30 + "end. ", '{"name": "' + "x" * 130 + '"}, '
    assert outline(sentence * 3).texts == [sentence] * 3
    assert outline(tool * 3).texts == [tool] * 3


def test_equal_content_has_one_name_wherever_it_is_and_another_with_another_salt() -> None:
    one, other = outline(LONG + "x" * 40), outline("y" * 50 + "\n" + LONG)
    assert one.hashes[0] == other.hashes[1]
    assert one.hashes[0] != outline(LONG, salt="s").hashes[0]
    tokens = list(range(12))
    blocks = outline_of_tokens(tokens, 4, seed(None))
    assert blocks.ends == [4, 8, 12]
    assert blocks.hashes[1:] == outline_of_tokens([*tokens[4:], 1], 4, seed(None)).hashes
    assert set(blocks.hashes).isdisjoint(outline_of_tokens(tokens, 4, seed("s")).hashes)


def test_a_message_ends_a_piece_and_the_template_belongs_to_the_next_message() -> None:
    text = "<s>system\nBe brief.<s>user\nHi<s>assistant\n"
    spans = [Span("system", 10, 19), Span("user", 27, 29)]
    found = outline(text, spans)
    assert found.texts == ["<s>system\nBe brief.", "<s>user\nHi", "<s>assistant\n"]
    assert (found.messages, found.roles) == ([0, 1, 2], ["system", "user"])
    assert found.lines == [-1, -1, 0]


def test_texts_stay_where_they_are_unless_they_are_allowed() -> None:
    sizes = np.array([4] * 12, np.int64)
    found = outline_of_text(LONG, [], sizes, seed(None), with_texts=False)
    assert (found.texts, found.token_sizes) == ([], b"")
    assert found.hashes == outline(LONG).hashes


def test_places_are_in_proportion_where_the_tokenizer_has_changed_the_text() -> None:
    text = LONG * 4
    sizes = np.array([4] * 94, np.int64)  # twice the text's bytes
    found = outline_of_text(text, [], sizes, seed(None), with_texts=False)
    assert found.ends == [24, 47, 71, 94]


def rendered(messages: Any) -> str:
    return (
        "".join(f"<s>{each['role']}\n{each['content'].strip()}<e>\n" for each in messages) + "<s>assistant\n"
    )


@pytest.mark.parametrize(
    "contents",
    [
        ("Be brief.", "user", "s", "<e>\n<s>user\n"),
        ("", "system", " padded \n", "a\nb"),
        ("①", "\ue0001\ue001", "user\n", "user"),
    ],
)
def test_messages_are_found_where_the_template_put_them(contents: tuple[str, ...]) -> None:
    messages = [
        {"role": role, "content": content}
        for role, content in zip(("system", "user", "assistant", "user"), contents, strict=True)
    ]
    text = rendered(messages)
    spans = message_spans(rendered, messages, text)
    assert [text[span.start : span.end] for span in spans] == [content.strip() for content in contents]
    assert [span.role for span in spans] == ["system", "user", "assistant", "user"]
    starts = [text.index("<s>system\n") + 10]
    for content in contents[:-1]:
        starts.append(starts[-1] + len(content.strip()))
    for span, role in zip(spans, ("system", "user", "assistant", "user"), strict=True):
        assert text[: span.start].endswith(f"<s>{role}\n")


def test_a_template_that_refuses_marks_leaves_messages_where_they_can_be_found() -> None:
    def refuses(messages: Any) -> str:
        raise InvalidRequestError("not these")

    spans = message_spans(refuses, [{"role": "user", "content": "hello"}], "hello there")
    assert spans == [Span("user", 0, 5)]
