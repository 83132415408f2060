"""The whole graph with ranks that play a script: `build` instead of `app.build:build_app`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application

from app.config import AppConfig, load_config
from app.deployments.ingress.ingress import Ingress
from app.deployments.rank import dp_rank
from app.deployments.router.router import Router
from app.engine.interface import RankEngine
from app.events.endpoints import KvEvents, parse_kv_events
from tests.support.engine.scripted_engine import ScriptedEngine

CONTROL = {"num_cpus": 0}
CHAT_TEMPLATE = """\
{%- if tools %}<|im_start|>system
You may call functions. They are within <tools></tools>:
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
A call is a JSON object within <tool_call></tool_call>.<|im_end|>
{% endif -%}
{%- for message in messages %}
{%- if message.role == "tool" %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}
<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""In the form of Hermes' and Qwen's."""


def write_script(folder: Path, *turns: str) -> None:
    """What the ranks of the model in `folder` say: see `ScriptedEngine`."""
    (folder / "script.json").write_text(json.dumps(turns))


def call_of(name: str, **arguments: Any) -> str:
    """A call as such a model writes it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def scripted_engine(config: AppConfig, number: int) -> RankEngine:
    """In place of `load_engine`."""
    assert config.model.max_model_len is not None
    return ScriptedEngine(Path(config.model.path), number, config.model.max_model_len)


class ScriptedRank(dp_rank.DPRank):
    """A rank whose engine plays a script; everything else of it is the product's."""

    async def __init__(self, config: AppConfig, events: KvEvents) -> None:  # type: ignore[misc]
        vars(dp_rank)["load_engine"] = scripted_engine
        await super().__init__(config, events)


def build(args: Mapping[str, Any]) -> Application:
    """The graph."""
    config = load_config(args)
    events = parse_kv_events(config)
    small: Any = {"ray_actor_options": CONTROL}
    ranks = serve.deployment(name="DPRank", num_replicas=config.dp_size, **small)(ScriptedRank).bind(
        config, events
    )
    router = serve.deployment(name="Router", **small)(Router).bind(config, events, ranks)
    return serve.deployment(name="Ingress", **small)(Ingress).bind(config, events, router, ranks)
