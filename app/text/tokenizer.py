"""A model's tokenizer: text to token ids and back, chat messages to prompt text.

Read from a folder in the Hugging Face layout, as transformers reads it: tokenizer.json, tokenizer_config.json
(special tokens, chat template), special_tokens_map.json (older folders), chat_template.jinja (wins over
tokenizer_config.json's), generation_config.json or config.json (end of sequence).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from app.errors import InvalidRequestError, ModelNotFoundError, UnsupportedModelError
from app.text.template.chat_template import ChatTemplate
from app.text.text_stream import TextStream
from app.text.token_spelling import TokenSpelling, byte_fallback_bytes, byte_level_bytes

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """Immutable after construction: every method may be called from several threads at once.

    Attributes:
        eos_token_ids: tokens that end an answer.
        special_tokens: by their names in transformers (`eos_token`), as they are written.
        vocab_size: token ids known here, special ones included; the model's own may be padded to more.
        special_texts: the special tokens as they are written.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_token_ids: Sequence[int],
        chat_template: ChatTemplate | None,
        special_tokens: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        # Serving never cuts or pads a prompt, also where the file asks for that.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._chat_template = chat_template
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._added_texts = {token_id: token.content for token_id, token in added.items()}
        # The library shows the parts of a decoder only in its pickled form, which is JSON.
        is_byte_level = backend.decoder is not None and b'"ByteLevel"' in backend.decoder.__getstate__()
        self._sizes: dict[int, int] = {}
        """Bytes of the tokens that `token_sizes` was asked for."""
        self._token_bytes = byte_level_bytes if is_byte_level else byte_fallback_bytes
        self._bos_token_id = _added_first(backend)
        self.special_texts = tuple(self._added_texts[token_id] for token_id in sorted(self._special_ids))
        self.special_tokens = special_tokens
        self.eos_token_ids = tuple(eos_token_ids)
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a model's folder.

        Raises:
            ModelNotFoundError: the folder has no tokenizer.json.
            UnsupportedModelError: a file can't be read.
        """
        backend = _read_backend(folder / "tokenizer.json")
        config = _read_json(folder / "tokenizer_config.json")
        special_tokens = _special_tokens(folder, config)
        source = _chat_template_source(folder, config)
        return cls(
            backend,
            eos_token_ids=_eos_token_ids(folder, backend, special_tokens),
            chat_template=None if source is None else ChatTemplate(source, special_tokens),
            special_tokens=special_tokens,
        )

    def encode(
        self, text: str, add_special_tokens: bool = False, *, special_tokens_as_text: bool = False
    ) -> list[int]:
        """Token ids of `text`; with `add_special_tokens` also the tokens that the tokenizer adds to a text.

        A beginning of the text (BOS) that the text has already isn't added again. A special token's text
        inside `text`, for example a client's "<|im_end|>", becomes that token: chat templates rely on it, and
        transformers does the same. With `special_tokens_as_text` it becomes the tokens of its characters.

        Raises:
            InvalidRequestError: `text` has a lone surrogate, which no UTF-8 can express.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"the text has a lone surrogate ({text[error.start]!r}) at character {error.start}; "
                "only text that UTF-8 can express has tokens"
            ) from None
        # Unlike `encode`, this lets other threads run meanwhile: a long text takes seconds.
        backend = self._text_only_backend if special_tokens_as_text else self._backend
        (encoding,) = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        token_ids: list[int] = encoding.ids
        is_doubled = add_special_tokens and token_ids[:2] == [self._bos_token_id] * 2
        return token_ids[1:] if is_doubled else token_ids

    def with_bos(self, token_ids: list[int]) -> list[int]:
        """`token_ids` with the token by which texts begin, if the tokenizer has one and it isn't there."""
        if self._bos_token_id is None or token_ids[:1] == [self._bos_token_id]:
            return token_ids
        return [self._bos_token_id, *token_ids]

    @functools.cached_property
    def _text_only_backend(self) -> tokenizers.Tokenizer:
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.encode_special_tokens = True
        return backend

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`. Ids outside the vocabulary have none; invalid UTF-8 becomes U+FFFD."""
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def entries(self, token_ids: Sequence[int]) -> list[str]:
        """The vocabulary's entries, in the tokenizer's own spelling (`Ġworld`); "" for ids outside of it."""
        return [self._backend.id_to_token(token_id) or "" for token_id in token_ids]

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt text of a conversation; `variables` are what else the template may use (`tools`, …).

        Raises:
            InvalidRequestError: the model has no chat template, or the template refuses the messages.
        """
        return self.chat_template.render(messages, add_generation_prompt=add_generation_prompt, **variables)

    @property
    def chat_template_source(self) -> str:
        """The template's text; none if the model has none."""
        return "" if self._chat_template is None else self._chat_template.source

    def special_token_id(self, text: str) -> int | None:
        """The special token that is written like this, if there is one."""
        token_id = self._backend.token_to_id(text)
        return token_id if token_id in self._special_ids else None

    @property
    def chat_template(self) -> ChatTemplate:
        """The model's template. Raises `InvalidRequestError` if it has none."""
        if self._chat_template is None:
            raise InvalidRequestError(
                "this model has no chat template; send a prompt to /v1/completions instead", param="messages"
            )
        return self._chat_template

    def token_sizes(self, token_ids: Sequence[int]) -> npt.NDArray[np.int64]:
        """Bytes of text that each token stands for, special ones too."""
        sizes = self._sizes
        for token_id in set(token_ids).difference(sizes):
            text = self._added_texts.get(token_id)
            sizes[token_id] = len(self.spell(token_id).data if text is None else text.encode())
        return np.fromiter(map(sizes.__getitem__, token_ids), np.int64, len(token_ids))

    def text_stream(
        self,
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
        *,
        keep_stop: bool = False,
    ) -> TextStream:
        """A new answer's text, cut before the first of the `stop` strings, or with `keep_stop` after it.

        The text of the first `min_tokens` tokens never matches. Special tokens have no text, or if they
        aren't skipped their own, but for the end-of-sequence token that ends the answer without `keep_stop`.

        Raises:
            InvalidRequestError: a stop string is empty.
        """
        if skip_special_tokens:
            return TextStream(self.decode, self._is_skipped, stop, min_tokens, keep_stop=keep_stop)
        decode = functools.partial(self.decode, skip_special_tokens=False)
        not_last = () if keep_stop else self.eos_token_ids
        return TextStream(decode, self._is_unknown, stop, min_tokens, keep_stop=keep_stop, not_last=not_last)

    def spell(self, token_id: int) -> TokenSpelling:
        """The token by itself; an id outside the vocabulary has no bytes and no name."""
        if token_id in self._special_ids:
            return TokenSpelling(b"", self._added_texts[token_id])
        if token_id in self._added_texts:
            return TokenSpelling.of_text(self._added_texts[token_id].encode())
        return TokenSpelling.of_text(self._token_bytes(self._backend.id_to_token(token_id) or ""))

    def _is_skipped(self, token_id: int) -> bool:
        return token_id in self._special_ids or self._is_unknown(token_id)

    def _is_unknown(self, token_id: int) -> bool:
        return self._backend.id_to_token(token_id) is None


def _added_first(backend: tokenizers.Tokenizer) -> int | None:
    """The token that the tokenizer puts before every text; None if it doesn't."""
    bare, whole = (backend.encode("a", add_special_tokens=added).ids for added in (False, True))
    return whole[0] if whole[1 : len(bare) + 1] == bare else None


def _read_backend(file: Path) -> tokenizers.Tokenizer:
    if not file.is_file():
        raise ModelNotFoundError(f"{file.parent} has no {file.name}")
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise UnsupportedModelError(f"{file}: not a tokenizer that can be read: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    """The file's object; {} if there is no such file."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnsupportedModelError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UnsupportedModelError(f"{file}: a JSON object is needed, not {type(content).__name__}")
    return content


def _special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Name → text; the files give a token as its text or as an object that holds it."""
    if "added_tokens_decoder" not in config:
        # Written before transformers 4.34: a file of their own wins.
        config = {**config, **_read_json(folder / "special_tokens_map.json")}
    given = {name: config.get(name) for name in _SPECIAL_TOKENS}
    texts = {name: token["content"] if isinstance(token, dict) else token for name, token in given.items()}
    return {name: text for name, text in texts.items() if text is not None}


def _chat_template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name; clients' messages take the default one
        return {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def _eos_token_ids(
    folder: Path, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str]
) -> list[int]:
    """generation_config.json's, else config.json's, else the tokenizer's own end-of-sequence token."""
    for name in ("generation_config.json", "config.json"):
        found = _read_json(folder / name).get("eos_token_id")
        if found not in (None, []):
            return found if isinstance(found, list) else [found]
    token_id = backend.token_to_id(special_tokens.get("eos_token", ""))
    return [] if token_id is None else [token_id]
