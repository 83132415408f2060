"""Which templates want a message's content in parts, on the forms in which models' templates are written."""

from __future__ import annotations

import pytest

from app.text.template.chat_template import ChatTemplate

STRINGS = [
    "{% for message in messages %}{{ message['role'] }}{{ message['content'] }}{% endfor %}",
    "{% for m in messages %}{{ m.content | trim }}{% endfor %}",
    "{% for m in messages %}{% for call in m.tool_calls %}{{ call.function.name }}{% endfor %}{{ m.content }}"
    "{% endfor %}",
    "{% set text = messages[0].content %}{% for word in text.split() %}{{ word }}{% endfor %}",
    "{% for tool in tools %}{{ tool.content }}{% endfor %}",
    "{% for m in messages %}{% for x in documents %}{{ x.content }}{% endfor %}{{ m.content }}{% endfor %}",
    "{{ messages | tojson }}",
]
PARTS = [
    # Llama Guard 3's way,
    "{% for message in messages %}{% for content in message['content'] %}{% if content['type'] == 'text' %}"
    "{{ content['text'] | trim }}{% endif %}{% endfor %}{% endfor %}",
    # Llama 3.2 Vision's, which can do both,
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}",
    # by way of other variables, slices and filters.
    "{% set loop_messages = messages[1:] %}{% for m in loop_messages %}{% for c in m['content'] | list %}"
    "{{ c.text }}{% endfor %}{% endfor %}",
    "{% for m in messages | reverse %}{% set content = m.content %}{% for c in content %}"
    "{{ c.text }}{% endfor %}{% endfor %}",
    "{% for c in messages[0].content %}{{ c.text }}{% endfor %}",
    "{% set first = messages[0] %}{% for c in first.content %}{{ c.text }}{% endfor %}",
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}"
    "{% endif %}{% for m in rest %}{% for c in m.content[:1] %}{{ c.text }}{% endfor %}{% endfor %}",
]


@pytest.mark.parametrize("source", STRINGS)
def test_templates_of_strings(source: str) -> None:
    assert not ChatTemplate(source, {}).wants_parts


@pytest.mark.parametrize("source", PARTS)
def test_templates_of_parts(source: str) -> None:
    assert ChatTemplate(source, {}).wants_parts


def test_what_a_template_reads() -> None:
    template = ChatTemplate(
        "{% set ns = namespace(a=1) %}{% if tools is not none %}{{ tools }}{% endif %}{% generation %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}{% endgeneration %}"
        "{% if enable_thinking is defined and enable_thinking is false %}x{% endif %}",
        {},
    )
    assert template.variables >= {"tools", "messages", "enable_thinking"}
    assert not template.variables & {"ns", "m", "documents", "reasoning_effort"}
