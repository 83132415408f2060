"""Chat messages to prompt text, with the model's own Jinja template.

The environment is the one that templates are written for, that of transformers' `apply_chat_template`. The
sandbox prevents a template from reaching Python or changing the messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.errors import InvalidRequestError, UnsupportedModelError
from app.text.template.content_format import loops_over_content


class ChatTemplate:
    """A compiled template. Rendering from several threads at once is safe.

    Attributes:
        source: its Jinja text.
        variables: the names that it reads of what it is given.
        wants_parts: whether it loops over the parts of a message's content, so that a string would be lost.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile the template.

        Args:
            source: the template's Jinja text.
            special_tokens: what the template sees as `bos_token`, `eos_token` and so on.

        Raises:
            UnsupportedModelError: the template isn't valid Jinja.
        """
        self._special_tokens = dict(special_tokens)
        self.source = source
        environment = _environment()
        try:
            parsed = environment.parse(source)
            self._template = environment.from_string(source)
            self.variables = frozenset(find_undeclared_variables(parsed))
        except jinja2.TemplateError as error:
            raise UnsupportedModelError(f"the model's chat template doesn't compile: {error}") from error
        self.wants_parts = loops_over_content(parsed)

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, **variables: Any
    ) -> str:
        """The prompt's text.

        Raises:
            InvalidRequestError: the template refuses the messages, or can't handle them.
        """
        # Templates ask `tools is not none`, so these two must be there.
        given = {"tools": None, "documents": None, **self._special_tokens, **variables}
        given |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(given)
        # The template is foreign code over the client's data: any exception means "not these messages".
        except Exception as error:
            raise InvalidRequestError(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks text to train on; serving uses only its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own interface)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML characters, which models have never seen.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
