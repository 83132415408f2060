"""Where each message's content is in the prompt that a chat template made of them.

Templates are programs, so nothing says which character came from where, and a short content ("user") may be
anywhere in what the template writes itself. So the template is run again with a mark in place of each
content: between the marks is what it writes, and the contents are between that.

    text       <|im_start|>user\nuser<|im_end|>\n
    skeleton   <|im_start|>user\n ①  <|im_end|>\n
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from app.errors import InvalidRequestError
from app.text.outline import Span

Messages = Sequence[Mapping[str, Any]]
_MARK = "\ue000{}\ue001"
"""Of Unicode's private use, which no template writes."""


def message_spans(render: Callable[[Messages], str], messages: Messages, text: str) -> list[Span]:
    """A span for each message, in order; an empty one where a content isn't in the text as it was given.

    Args:
        render: the template; leading and trailing space of a content may be dropped.
        messages: each with `role` and `content`.
        text: what `render` made of them.
    """
    marks = [_MARK.format(number) for number in range(len(messages))]
    try:
        skeleton = render([{**each, "content": mark} for each, mark in zip(messages, marks, strict=True)])
    except InvalidRequestError:  # a template that looks at what it is given
        skeleton = ""
    spans: list[Span] = []
    at = cursor = 0
    for message, mark in zip(messages, marks, strict=True):
        content = str(message["content"])
        found = skeleton.find(mark, cursor)
        if found >= 0 and text.startswith(skeleton[cursor:found], at):
            at += found - cursor
            cursor = found + len(mark)
        end = _end(text, content, at)
        spans.append(Span(str(message["role"]), at, end))
        at = end
    return spans


def _end(text: str, content: str, start: int) -> int:
    for each in (content, content.strip()):
        if text.startswith(each, start):
            return start + len(each)
    return start
