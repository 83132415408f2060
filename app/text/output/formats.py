"""Which format a model writes its calls and thoughts in: seen in its chat template, or set in the config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from app.errors import InvalidRequestError
from app.generation import MAX_SOURCE_CHARS, SamplingParams, StructuredOutput
from app.settings.model import ModelConfig
from app.text.output import hermes, llama, mistral, pythonic, reasoning
from app.text.output.grammars import CallForm, ThoughtState, Tool, calls_grammar, thoughtful_grammar
from app.text.output.parts import OutputParser, PlainParser
from app.text.output.python_grammar import python_grammar
from app.text.output.qwen_coder import parser as qwen_coder
from app.text.output.qwen_coder.grammar import qwen_coder_grammar
from app.text.output.qwen_coder.values import Kinds, kinds_of
from app.text.output.reasoning import ThoughtParser
from app.text.tokenizer import Tokenizer

CallFormat = Literal["none", "hermes", "qwen3_coder", "llama_json", "llama_pythonic", "mistral"]

_NEW_PARSER: dict[CallFormat, Callable[[OutputFormat], OutputParser]] = {
    "none": lambda output: PlainParser(),
    "hermes": lambda output: hermes.HermesParser(),
    "qwen3_coder": lambda output: qwen_coder.QwenCoderParser(output.kinds),
    "llama_json": lambda output: llama.LlamaParser(output.names),
    "llama_pythonic": lambda output: pythonic.PythonicParser(output.names),
    "mistral": lambda output: mistral.MistralParser(),
}
_MARKS: dict[CallFormat, tuple[str, ...]] = {
    "none": (),
    "hermes": (hermes.OPEN, hermes.CLOSE),
    "qwen3_coder": (qwen_coder.OPEN, qwen_coder.CLOSE),
    "llama_json": (llama.TAG,),
    "llama_pythonic": (pythonic.START, pythonic.END),
    "mistral": (mistral.OPEN, mistral.ARGS, mistral.CALL_ID),
}
"""What a parser must see, also where the tokenizer has it as a special token."""


@dataclass(frozen=True)
class CallWish:
    """The calls that a request allows or wants.

    Attributes:
        tools: those that may be called.
        required: whether there must be a call.
        parallel: whether there may be more than one.
    """

    tools: tuple[Tool, ...] = ()
    required: bool = False
    parallel: bool = True


@dataclass(frozen=True)
class OutputFormat:
    """How one request's output is read: see `OutputFormats.of`. `kinds`: how parameters are written."""

    calls: CallFormat = "none"
    names: frozenset[str] = frozenset()
    thoughts: ThoughtState = "none"
    kinds: Kinds = field(default_factory=dict)

    def parser(self) -> OutputParser:
        """A new sample's."""
        parser = _NEW_PARSER[self.calls](self)
        if self.thoughts == "none":
            return parser
        return ThoughtParser(parser, is_open=self.thoughts == "open")


PLAIN_OUTPUT = OutputFormat()
"""All of it is text."""


class OutputFormats:
    """What one model's outputs are like.

    Args:
        tokenizer: the model's.
        config: which formats it writes, if they aren't to be seen in its template.
        constrains: whether the engine can be given grammars of ours.
    """

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig, *, constrains: bool) -> None:
        self._tokenizer = tokenizer
        self._source = tokenizer.chat_template_source
        calls = config.tool_call_format
        self._calls: CallFormat = _calls_of(self._source) if calls == "auto" else calls
        thinks = reasoning.OPEN in self._source or reasoning.CLOSE in self._source
        self._thinks = thinks if config.reasoning_format == "auto" else config.reasoning_format == "think"
        self._constrains = constrains

    def of(
        self, wish: CallWish, *, is_thinking: bool, separates: bool, wanted: StructuredOutput | None = None
    ) -> OutputFormat:
        """How an output is read.

        Args:
            wish: the calls that the request allows.
            is_thinking: whether the prompt ends in the mark that opens thoughts.
            separates: whether thoughts are split from the rest.
            wanted: what the output must be, if the request says so.

        Raises:
            InvalidRequestError: tools are given, and it isn't known how the model calls them.
        """
        if wish.tools and self._calls == "none":
            unknown = "it isn't known how this model writes calls"
            message = f"tools: {unknown}; the operator can set model.tool_call_format"
            raise InvalidRequestError(message, param="tools", code="unsupported_field")
        thoughts: ThoughtState = "none"
        # A regex, a choice and a grammar are what the output is from its first token on.
        is_plain = wanted is None or wanted.kind == "json_schema"
        if self._thinks and separates and (is_plain or not is_thinking):
            thoughts = "open" if is_thinking else "possible"
        calls: CallFormat = self._calls if wish.tools else "none"
        names = frozenset(tool.name for tool in wish.tools)
        return OutputFormat(calls, names, thoughts, kinds_of(wish.tools) if calls == "qwen3_coder" else {})

    def constrained(self, params: SamplingParams, wish: CallWish, output: OutputFormat) -> SamplingParams:
        """`params` with what the calls need: their grammar, and the text of special tokens that mark them.

        Raises:
            InvalidRequestError: the request wants another structured output than JSON by a schema too.
        """
        if output.calls == "none":
            return _after_thoughts(params) if output.thoughts == "open" else params
        marks = {
            *_MARKS[output.calls],
            *(() if output.thoughts == "none" else (reasoning.OPEN, reasoning.CLOSE)),
        }
        if marks & {*self._tokenizer.special_texts}:
            params = replace(params, skip_special_tokens=False)
        if not wish.required and not self._constrains:
            return params
        answer = params.structured_output
        if answer is not None and answer.kind != "json_schema":
            message = f"{answer.field}: beside tools only JSON by a schema is allowed"
            raise InvalidRequestError(message, param=answer.field)
        schema = None if answer is None else answer.source
        grammar = self._grammar(wish, output, schema)
        if len(grammar) > MAX_SOURCE_CHARS and not any(tool.strict for tool in wish.tools):
            # Arguments that are any object parse as well.
            bare = tuple(Tool(tool.name) for tool in wish.tools)
            grammar = self._grammar(replace(wish, tools=bare), output, schema)
        return replace(params, structured_output=StructuredOutput("grammar", grammar, "tools"))

    def _grammar(self, wish: CallWish, output: OutputFormat, answer: str | None) -> str:
        how: dict[str, Any] = {"required": wish.required, "parallel": wish.parallel}
        how |= {"thoughts": output.thoughts, "answer": answer}
        if output.calls == "llama_pythonic":
            return python_grammar(wish.tools, **how)
        if output.calls == "qwen3_coder":
            return qwen_coder_grammar(wish.tools, **how)
        return calls_grammar(self._form(output.calls), wish.tools, **how)

    def _form(self, calls: CallFormat) -> CallForm:
        match calls:
            case "hermes":
                before, after = '{"name": "{name}", "arguments": ', "}"
                return CallForm(before, after, hermes.OPEN, opening="WS", closing=f'WS "{hermes.CLOSE}"')
            case "llama_json":
                begin = '{"name": "'
                before, separator = '{name}", "parameters": ', f'";" WS {_quoted(begin)}'
                return CallForm(before, "}", begin, separator=separator, text_before=False)
            case _:
                return self._mistral()

    def _mistral(self) -> CallForm:
        mark, args = self._token(mistral.OPEN), self._token(mistral.ARGS)
        if mistral.ARGS in self._source and mark and args:
            return CallForm("{name}", "", mark, joint=args, is_token=True)
        begin, given = '{"name": "{name}", "arguments": ', mark or mistral.OPEN
        is_token = mark is not None
        return CallForm(begin, "}", given, "", is_token, opening='"["', closing='"]"', separator='", "')

    def _token(self, text: str) -> str | None:
        token_id = self._tokenizer.special_token_id(text)
        return None if token_id is None else f"<[{token_id}]>"


def _after_thoughts(params: SamplingParams) -> SamplingParams:
    """`params`, whose JSON comes after the thoughts that the prompt has begun."""
    wanted = params.structured_output
    if wanted is None:
        return params
    grammar = StructuredOutput("grammar", thoughtful_grammar(wanted.source), wanted.field)
    return replace(params, structured_output=grammar)


def _quoted(text: str) -> str:
    escaped = text.replace('"', '\\"')
    return f'"{escaped}"'


def _calls_of(source: str) -> CallFormat:
    """The format in which a template writes earlier calls, which is the model's own."""
    if mistral.OPEN in source:
        return "mistral"
    if hermes.OPEN in source:
        # Qwen3-Coder writes something like XML between the same marks.
        return "qwen3_coder" if qwen_coder.FUNCTION in source else "hermes"
    if pythonic.START in source or "[func_name1(" in source:
        return "llama_pythonic"
    is_llama = llama.TAG in source or '"parameters": dictionary' in source or '"parameters": ' in source
    return "llama_json" if is_llama else "none"
