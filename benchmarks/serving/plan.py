"""The plan of all runs, made from the options and a configuration file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from app.config import AppConfig, load_config
from app.errors import ConfigError
from app.models.store import resolve_model
from app.text.tokenizer import Tokenizer
from benchmarks.serving.options import Options
from benchmarks.serving.workload import Conversation, Message, count_needed_tokens, make_conversations

CACHE_SHARE = 2 / 3
"""Of the blocks that all conversations need, the share in one rank's cache by default.

It is more than the rank's fair share and less than everything.
"""


@dataclass(frozen=True)
class Plan:
    """What will be run.

    Attributes:
        options: the command line's.
        conversations: in order of arrival.
        args: the application's, but for policy and ports.
        config: `args`, validated.
        needed_blocks: KV blocks of all conversations, shared ones counted once.
    """

    options: Options
    conversations: Sequence[Conversation]
    args: Mapping[str, Any]
    config: AppConfig
    needed_blocks: int


def make_plan(options: Options) -> Plan:
    """What to run with these options.

    Raises:
        ConfigError: the file is no configuration; names the file and what is wrong.
    """
    args = _read_args(options.config)
    if options.dp_size is not None:
        args["dp_size"] = options.dp_size
    config = load_config(args)
    tokenizer = Tokenizer.from_folder(resolve_model(config.model))

    def count(messages: Sequence[Message]) -> int:
        return len(tokenizer.encode(tokenizer.render_chat(messages)))

    conversations = make_conversations(options.shape)
    total, longest = count_needed_tokens(conversations, options.answer_tokens, count)
    block_size = config.engine.cache.block_size
    needed_blocks = math.ceil(total / block_size)
    if options.num_blocks != "config":
        num_blocks = options.num_blocks
        if num_blocks == "workload":
            # A cache for fewer than two conversations would measure preemption.
            num_blocks = math.ceil(max(CACHE_SHARE * needed_blocks, 2 * longest / block_size))
        engine = args.get("engine", {})
        args["engine"] = {**engine, "cache": {**engine.get("cache", {}), "num_blocks": num_blocks}}
    return Plan(options, conversations, args, load_config(args), needed_blocks)


def _read_args(file: Path) -> dict[str, Any]:
    """The `args` of the file's first application."""
    try:
        return dict(yaml.safe_load(file.read_text())["applications"][0]["args"])
    except (yaml.YAMLError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{file}: `args` of the first of `applications` is needed, as in serve_config.yaml; {error!r}"
        ) from None
