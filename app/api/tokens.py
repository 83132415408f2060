"""Bodies and answers of `/tokenize` and `/detokenize`, in the shapes of vLLM and SGLang, nearly the same.

    {"prompt": "Hello"}            {"tokens": [19556], "count": 1, "max_model_len": 8192}
    {"messages": […]}              the prompt that the chat would have
    {"tokens": [19556]}            {"prompt": "Hello", "text": "Hello"}

Several prompts (SGLang) are answered with lists of the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from app.api.fields import TOKENIZE, Fields
from app.api.openai.requests import ChatRequest
from app.api.request_model import RequestBody, TokenIds, parse_values, read_json
from app.errors import InvalidRequestError

Json = dict[str, Any]
MAX_TEXTS = 1024
"""Texts of one request at most."""


class TokenizeText(RequestBody):
    """The body of POST /tokenize with a text, or several.

    Attributes:
        add_special_tokens: whether the tokenizer adds its own, as it does for `/v1/completions`.
        return_token_strs: whether the answer has the tokens' texts too.
    """

    unserved: ClassVar[Fields] = TOKENIZE

    model: str | None = None
    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChat(ChatRequest):
    """The body of POST /tokenize with a chat: that of a chat completion, whose prompt it is about."""

    return_token_strs: bool = False


class DetokenizeBody(RequestBody):
    """The body of POST /detokenize.

    Attributes:
        tokens: one text's tokens, or a list of several texts' tokens.
        skip_special_tokens: whether special tokens have no text. By default they have theirs, as in vLLM, so
            that the text has the same tokens.
    """

    model: str | None = None
    tokens: TokenIds | Annotated[list[TokenIds], Field(max_length=MAX_TEXTS)]
    skip_special_tokens: bool = False

    @property
    def is_list(self) -> bool:
        """Whether there are several texts' tokens, or a list of one's."""
        return bool(self.tokens) and isinstance(self.tokens[0], list)

    @property
    def token_lists(self) -> list[list[int]]:
        """Each text's tokens."""
        return (
            [each for each in self.tokens if isinstance(each, list)]
            if self.is_list
            else [[each for each in self.tokens if isinstance(each, int)]]
        )


def parse_tokenize(body: bytes) -> TokenizeText | TokenizeChat:
    """What is to be tokenized. Raises `InvalidRequestError`, as `parse_body` does."""
    values = read_json(body)
    names = frozenset(values) if isinstance(values, dict) else frozenset()
    if {"messages", "prompt"} <= names:
        raise InvalidRequestError("prompt: messages are given too; send one of them", param="prompt")
    return parse_values(TokenizeChat, values) if "messages" in names else parse_values(TokenizeText, values)


def parse_detokenize(body: bytes) -> DetokenizeBody:
    """What is to become text. Raises `InvalidRequestError`, as `parse_body` does."""
    return parse_values(DetokenizeBody, read_json(body))


def tokenize_answer(
    prompts: Sequence[list[int]],
    *,
    is_list: bool,
    max_model_len: int,
    entries_of: Callable[[Sequence[int]], list[str]] | None,
) -> Json:
    """The answer of `/tokenize`.

    Args:
        prompts: each one's tokens.
        is_list: whether a list of prompts was sent.
        max_model_len: tokens of the context.
        entries_of: the vocabulary's entries of tokens, if they are wanted.
    """
    answer: Json = {
        "count": [len(tokens) for tokens in prompts] if is_list else len(prompts[0]),
        "max_model_len": max_model_len,
        "tokens": list(prompts) if is_list else prompts[0],
    }
    if entries_of is not None:
        names = [entries_of(tokens) for tokens in prompts]
        answer["token_strs"] = names if is_list else names[0]
    return answer


def detokenize_answer(texts: Sequence[str], *, is_list: bool) -> Json:
    """The answer of `/detokenize`; vLLM has the text as `prompt`, SGLang as `text`."""
    shown = list(texts) if is_list else texts[0]
    return {"prompt": shown, "text": shown}


def tokenizer_info_answer(special_tokens: Mapping[str, str], chat_template: str) -> Json:
    """The answer of `/tokenizer_info`, of what vLLM's has of tokenizer_config.json.

    Args:
        special_tokens: by their names (`eos_token`).
        chat_template: none if the model has none.
    """
    template = {"chat_template": chat_template} if chat_template else {}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **special_tokens, **template}
