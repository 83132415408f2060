"""Grammars over a model's tokens: which may come next, so that an output satisfies the request's constraint.

llguidance compiles and runs them; its dialects are what clients write: JSON Schema, Rust's regex syntax, Lark
(https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md) or llama.cpp's GBNF.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import llguidance

from app.errors import InvalidRequestError, RequestFailedError
from app.generation import StructuredOutput
from app.text.deep_stack import call_on_deep_stack
from app.text.json_schema import without_annotations
from app.text.json_white_space import JsonWhiteSpace, WhiteSpaceTokens

logger = logging.getLogger(__name__)

CACHED_GRAMMARS = 64
MAX_LINES, MAX_LINE = 8, 100  # of a refusal's reason: lines, and characters of a line
_OWN_BOUND = '"whitespace_pattern"'  # in a schema's "x-guidance", which the library reads
# The library's own bounds on work: tens of milliseconds for a step. Verbose errors would repeat the whole
# grammar.
_LIMITS = llguidance.LLParserLimits(verbose_errors=False)


class Grammar:
    """The state of one output in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, white_space: JsonWhiteSpace | None) -> None:
        self._matcher = matcher
        self._white_space = white_space

    def allowed_tokens(self) -> bytes:
        """One byte per token id, 0 where the token can't be next. A text that may end allows end-of-sequence.

        Raises:
            RequestFailedError: the grammar is too complex to go on with.
        """
        mask = self._matcher.compute_logit_bias()
        if self._matcher.is_error():
            raise RequestFailedError(f"structured output: {_reason(self._matcher.get_error())}")
        return self._white_space.allowed_tokens(mask) if self._white_space else mask

    def accept(self, token_id: int) -> None:
        """Take the next token. One that wasn't allowed is an error of the next `allowed_tokens`."""
        self._matcher.consume_token(token_id)
        if self._white_space and not self._matcher.is_error():
            self._white_space.accept(token_id)

    @property
    def is_finished(self) -> bool:
        """Whether nothing can follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()


class GrammarCompiler:
    """Makes grammars for one tokenizer. Every method may be called from several threads at once."""

    def __init__(self, tokenizer_json: str, eos_token_ids: Sequence[int]) -> None:
        """Prepare the tokenizer.

        Args:
            tokenizer_json: the text of a Hugging Face tokenizer.json.
            eos_token_ids: tokens that end an output.
        """
        self._tokenizer: llguidance.LLTokenizer | None = None
        try:
            self._tokenizer = llguidance.LLTokenizer(tokenizer_json, eos_token=list(eos_token_ids) or None)
        except ValueError as error:
            # Requests without structured output can be served all the same.
            logger.warning("no structured output with this tokenizer: %s", error)
        self._white_space = WhiteSpaceTokens(_spellings(self._tokenizer))
        self._compiled = functools.lru_cache(CACHED_GRAMMARS)(self._compile)

    @classmethod
    def from_folder(cls, folder: Path, eos_token_ids: Sequence[int]) -> GrammarCompiler:
        """For the model in `folder`, which has a tokenizer.json."""
        return cls((folder / "tokenizer.json").read_text(encoding="utf-8"), eos_token_ids)

    def grammar(self, wanted: StructuredOutput) -> Grammar:
        """A new output's grammar. The last compiled ones are kept and not compiled again.

        Raises:
            InvalidRequestError: the constraint doesn't compile, or no output can satisfy it.
        """
        bounded = wanted.kind == "json_schema" and _OWN_BOUND not in wanted.source
        return Grammar(
            self._compiled(wanted).deep_copy(), JsonWhiteSpace(self._white_space) if bounded else None
        )

    def _compile(self, wanted: StructuredOutput) -> llguidance.LLMatcher:
        if self._tokenizer is None:
            raise _refusal(wanted, "this model's tokenizer can't be used for structured output")
        try:
            source = _library_grammar(wanted)
        except ValueError as error:
            raise _refusal(wanted, str(error)) from None
        new_matcher = functools.partial(llguidance.LLMatcher, log_level=0, limits=_LIMITS)
        # It recurses along chains of rules or references, which may be thousands long.
        matcher = call_on_deep_stack(functools.partial(new_matcher, self._tokenizer, source))
        if not matcher.is_error():
            # Finds out whether it can be satisfied at all, and prepares the first step of every output.
            matcher.compute_logit_bias()
        if matcher.is_error():
            raise _refusal(wanted, matcher.get_error())
        return matcher


def _library_grammar(wanted: StructuredOutput) -> str:
    if wanted.kind != "json_schema":
        return llguidance.grammar_from(wanted.kind, wanted.source)
    return llguidance.LLMatcher.grammar_from_json_schema(without_annotations(wanted.source))


def _spellings(tokenizer: llguidance.LLTokenizer | None) -> list[bytes]:
    return [tokenizer.decode_bytes([id]) for id in range(tokenizer.vocab_size)] if tokenizer else []


def _refusal(wanted: StructuredOutput, reason: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{wanted.field}: not a {wanted.kind.replace('_', ' ')} that can be used: {_reason(reason)}",
        param=wanted.field,
        code="invalid_grammar",
    )


def _reason(text: str) -> str:
    """The library's message with its lines cut: the source may be one of them, before the fault."""
    lines = text.removesuffix("\n<non-verbose/>").strip().splitlines()
    return "\n".join(line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}..." for line in lines[:MAX_LINES])
