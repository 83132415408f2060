"""A conversation to the token ids of its prompt, with everything by which a request can shape that prompt.

messages ──▶ content as the template wants it ──▶ template ──▶ every user's text there? ──▶ token ids
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from app.errors import InvalidRequestError, shown
from app.settings.model import ModelConfig
from app.text.dropped_lines import DroppedLines
from app.text.outline import Span
from app.text.template.chat_template import ChatTemplate
from app.text.template.message_spans import Messages, message_spans
from app.text.tokenizer import Tokenizer

_OWN_FIELDS = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
"""What a template reads and a request has fields of its own for."""

_PLACES = re.compile(r"\.\d+(?=\.|$)")
_THINK = "<think>"
_SWITCHES = ("enable_thinking", "thinking")
"""What templates call the variable by which a model thinks or doesn't: Qwen's and DeepSeek's name."""


@dataclass(frozen=True)
class ChatMessage:
    """One message.

    Attributes:
        role: as the template takes it.
        texts: its content, in the client's parts; none is no text.
        fields: what else a template may read of it: `name`, `tool_calls`, `tool_call_id`,
            `reasoning_content`.
        content_field, calls_field: the client's fields that hold the texts and the calls, for errors; None
            where they are OpenAI's, by the message's place: `messages.0.content`, `messages.0.tool_calls`.
    """

    role: str
    texts: tuple[str, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)
    content_field: str | None = field(default=None, compare=False)
    calls_field: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Chat:
    """A conversation, and what its template may read besides it.

    Attributes:
        messages: at least one.
        add_generation_prompt: whether the prompt ends in the beginning of the model's message.
        continue_final_message: whether it ends in the last message instead, which the model goes on with.
        add_special_tokens: whether the tokenizer adds its own besides the template's.
        variables: the template's by their names (`chat_template_kwargs`); those that it doesn't read are
            ignored.
        hints: the same for fields of the request itself.
        hint_fields: these fields' names, where they aren't the variables'.
        required: the same, but what the template doesn't read is refused: `tools`, `documents`.
        thinks: whether the model should think, for templates with a switch for it; None leaves that to them.
            It is told as ignored only if `hint_fields` has a name for `thinks`.
    """

    messages: Sequence[ChatMessage]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)
    hints: Mapping[str, Any] = field(default_factory=dict)
    hint_fields: Mapping[str, str] = field(default_factory=dict)
    required: Mapping[str, Any] = field(default_factory=dict)
    thinks: bool | None = None


@dataclass(frozen=True)
class PromptSource:
    """What a prompt's tokens were made of.

    Attributes:
        text: what was tokenized; None if the client sent tokens.
        messages: of a chat, each with `role` and `content`, a string.
        render: writes messages of this form as the chat's template wrote these.
    """

    text: str | None = None
    messages: Messages = ()
    render: Callable[[Messages], str] | None = None

    def spans(self) -> list[Span]:
        """Where each message's content is in the text; none if it isn't a chat's."""
        if self.text is None or self.render is None:
            return []
        return message_spans(self.render, self.messages, self.text)


TOKENS_ONLY = PromptSource()


@dataclass(frozen=True)
class Prompt:
    """What a model continues.

    Attributes:
        token_ids: the prompt.
        ignored_fields: fields of the request that the template doesn't read.
        is_thinking: whether it ends in the mark that opens thoughts.
        source: what the tokens were made of.
    """

    token_ids: list[int]
    ignored_fields: tuple[str, ...] = ()
    is_thinking: bool = False
    source: PromptSource = field(default=TOKENS_ONLY, compare=False)


class ChatPrompter:
    """Makes prompts for one model. Every method may be called from several threads at once.

    Args:
        tokenizer: the model's.
        config: whether its template takes parts, and what special tokens in messages are.
        dropped: what is left out of system messages.
        most: tokens of a prompt; None: any number.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: ModelConfig,
        dropped: DroppedLines | None = None,
        *,
        most: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._dropped = dropped or DroppedLines()
        self._format = config.chat_template_content_format
        self._most = most
        self._as_text = config.special_tokens_in_messages == "text"

    def prompt(self, chat: Chat) -> Prompt:
        """The prompt of a conversation.

        Raises:
            InvalidRequestError: the model has no template, or it refuses the messages, or leaves out a text
                or a field that changes the answer.
            PromptTooLongError: as its beginning shows.
        """
        template = self._tokenizer.chat_template
        chat, dropped = self._without_dropped_lines(chat)
        hidden = _Hidden(self._tokenizer.special_texts if self._as_text else ())
        messages = [hidden.message(each) for each in chat.messages]
        variables, ignored = _variables(template, chat)
        mark = f"kvbeacon{secrets.token_hex(16)}"
        given = messages
        if chat.continue_final_message:
            given = [*messages[:-1], _ending_in(messages[-1], f"{mark} ")]
        adds_beginning = chat.add_generation_prompt and not chat.continue_final_message

        def write(messages: Messages) -> str:
            return template.render(messages, add_generation_prompt=adds_beginning, **variables)

        text = write([self._shown(template, each) for each in given])
        _check_whole(chat.messages, messages, text)
        if chat.continue_final_message:
            text = _cut_at(mark, text, _content_field(chat.messages[-1], len(messages) - 1))
        pieces = hidden.pieces(text)
        source = PromptSource(
            "".join(piece for piece, _ in pieces),
            [{"role": each.role, "content": "".join(each.texts), **each.fields} for each in chat.messages],
            lambda given: write(
                [{**each, "content": self._content(template, (each["content"],))} for each in given]
            ),
        )
        token_ids = self._token_ids(pieces, chat.add_special_tokens)
        return Prompt(token_ids, (*dropped, *ignored), text.rstrip().endswith(_THINK), source)

    def _without_dropped_lines(self, chat: Chat) -> tuple[Chat, tuple[str, ...]]:
        """`chat` without the lines that system messages mustn't have, and what is told of them.

        A system message that has nothing else is left out, unless it is the only message.
        """
        told: dict[str, None] = {}
        kept: list[ChatMessage] = []
        for place, message in enumerate(chat.messages):
            field = _content_field(message, place)
            shown = replace(message, content_field=field, calls_field=_calls_field(message, place))
            if message.role == "system":
                each = [self._dropped.drop(text) for text in message.texts]
                names = [name for _, names in each for name in names]
                told |= dict.fromkeys(f"{_PLACES.sub('', field)}.{name}" for name in names)
                shown = replace(shown, texts=tuple(text for text, _ in each if text)) if names else shown
                if names and not shown.texts and len(chat.messages) > 1:
                    continue
            kept.append(shown)
        return (replace(chat, messages=kept), tuple(told)) if told else (chat, ())

    def _shown(self, template: ChatTemplate, message: ChatMessage) -> dict[str, Any]:
        """The message as the template takes it."""
        content = self._content(template, message.texts)
        return {"role": message.role, "content": content, **message.fields}

    def _content(self, template: ChatTemplate, texts: Sequence[str]) -> list[dict[str, str]] | str:
        wants_parts = template.wants_parts if self._format == "auto" else self._format == "openai"
        return [{"type": "text", "text": text} for text in texts] if wants_parts else "".join(texts)

    def _token_ids(self, pieces: Sequence[tuple[str, bool]], add_special_tokens: bool) -> list[int]:
        if len(pieces) == 1:
            return self._tokenizer.encode(pieces[0][0], add_special_tokens, most=self._most)
        token_ids = []
        for text, is_text_only in pieces:
            token_ids += self._tokenizer.encode(text, special_tokens_as_text=is_text_only, most=self._most)
        return self._tokenizer.with_bos(token_ids) if add_special_tokens else token_ids


def _variables(template: ChatTemplate, chat: Chat) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the template reads of what the request gives it, and the fields that it doesn't read."""
    for name in chat.required.keys() - template.variables:
        raise InvalidRequestError(
            f"{name}: the model's chat template can't write them", param=name, code="unsupported_field"
        )
    own = next((name for name in chat.variables if name in _OWN_FIELDS), None)
    if own is not None:
        path = f"chat_template_kwargs.{own}"
        raise InvalidRequestError(f"{path}: send it as the field {own}", param=path, code="unsupported_field")
    given = {f"chat_template_kwargs.{name}": (name, value) for name, value in chat.variables.items()}
    names = chat.hint_fields
    given |= {names.get(name, name): (name, value) for name, value in chat.hints.items()}
    ignored = tuple(path for path, (name, _) in given.items() if name not in template.variables)
    variables = {name: value for name, value in given.values() if name in template.variables}
    if chat.hints.get("reasoning_effort") == "none" and "enable_thinking" in template.variables:
        variables.setdefault("enable_thinking", False)
        effort = names.get("reasoning_effort", "reasoning_effort")
        ignored = tuple(path for path in ignored if path != effort)
    if chat.thinks is not None:
        switches = [name for name in _SWITCHES if name in template.variables]
        variables |= dict.fromkeys(switches, chat.thinks)
        as_wanted = switches or chat.thinks == (_THINK in template.source)
        ignored += () if as_wanted or "thinks" not in names else (names["thinks"],)
    return {**variables, **chat.required}, ignored


def _ending_in(message: ChatMessage, mark: str) -> ChatMessage:
    *texts, last = message.texts or ("",)
    return replace(message, texts=(*texts, last + mark))


def _content_field(message: ChatMessage, place: int) -> str:
    return message.content_field or f"messages.{place}.content"


def _calls_field(message: ChatMessage, place: int) -> str:
    return message.calls_field or f"messages.{place}.tool_calls"


def _cut_at(mark: str, text: str, field: str) -> str:
    """`text` up to the end of the message of `field`, in `mark` and a space, as transformers cuts it."""
    before, found, after = text.rpartition(mark)
    if not found:
        raise _left_out(field, "the message that is to be continued")
    # A template that trims its messages would have trimmed this one too.
    return before if after.startswith(" ") else before.rstrip()


def _check_whole(given: Sequence[ChatMessage], rendered: Sequence[ChatMessage], prompt: str) -> None:
    """Raises `InvalidRequestError` if the template has left out a user's or a tool's text, or a call.

    Args:
        given: the messages as the client sent them.
        rendered: the same as the template got them.
        prompt: what it made of them.
    """
    for place, (message, shown_as) in enumerate(zip(given, rendered, strict=True)):
        texts = zip(message.texts, shown_as.texts, strict=True)
        missing = [text for text, rendered_text in texts if not _has(prompt, rendered_text)]
        if missing and message.role in ("user", "tool"):
            raise _left_out(_content_field(message, place), shown(missing[0]))
        for call in shown_as.fields.get("tool_calls", ()):
            name = call["function"]["name"]
            if not _has(prompt, name):
                raise _left_out(_calls_field(message, place), f"the call of {shown(name)}")


def _left_out(path: str, what: str) -> InvalidRequestError:
    message = f"{path}: the model's chat template leaves {what} out of the prompt"
    return InvalidRequestError(message, param=path, code="not_in_prompt")


def _has(prompt: str, text: str) -> bool:
    """Whether `prompt` has `text`, whatever white space is around it, as it is or as JSON writes it."""
    bare = text.strip()
    return bare in prompt or any(
        json.dumps(bare, ensure_ascii=ascii_only)[1:-1] in prompt for ascii_only in (False, True)
    )


class _Hidden:
    """Special tokens' texts in messages, under names that mean nothing to template or tokenizer.

    Args:
        texts: those of the special tokens; none hides nothing.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        longest_first = sorted(filter(None, texts), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._secret = f"kvbeacon{secrets.token_hex(16)}"
        self._found: list[str] = []

    def message(self, message: ChatMessage) -> ChatMessage:
        """The message with names instead of special tokens' texts."""
        if self._pattern is None:
            return message
        texts = tuple(self._hide(text) for text in message.texts)
        fields = {name: self._in_fields(each) for name, each in message.fields.items()}
        return replace(message, texts=texts, fields=fields)

    def _in_fields(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._hide(value)
        if isinstance(value, Mapping):
            return {self._hide(name): self._in_fields(each) for name, each in value.items()}
        return [self._in_fields(each) for each in value] if isinstance(value, list) else value

    def _hide(self, text: str) -> str:
        assert self._pattern is not None
        return self._pattern.sub(self._name, text)

    def _name(self, match: re.Match[str]) -> str:
        self._found.append(match[0])
        return f"{self._secret}n{len(self._found) - 1}n"

    def pieces(self, text: str) -> list[tuple[str, bool]]:
        """`text` in pieces: as it is, or a special token's text, that is to stay text."""
        return list(self._pieces(text)) if self._found else [(text, False)]

    def _pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        for place, piece in enumerate(re.split(f"{self._secret}n([0-9]+)n", text)):
            if place % 2:
                yield self._found[int(piece)], True
            elif piece:
                yield piece, False
