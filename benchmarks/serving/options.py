"""The command line of `benchmarks.serving`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from benchmarks.serving.workload import WorkloadShape

POLICIES: Final[Mapping[str, str]] = {
    "prefix_aware": "predicted_ttft",
    "least_loaded": "least_loaded",
    "round_robin": "round_robin",
}
"""The benchmark's names → the configuration's."""
DEFAULT_CONFIG = Path(__file__).parents[2] / "serve_config.yaml"


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        config: a `serve_config.yaml` whose first application's `args` are the base.
        policies: keys of `POLICIES`, each once.
        rounds: runs of each policy.
        shape: the conversations.
        answer_tokens: tokens of each answer.
        concurrency: requests in flight at most.
        stagger_s: seconds between two users' arrivals.
        dp_size: ranks; None: the config's.
        num_blocks: KV blocks of each rank: a number, or the config's, or what suits the workload.
        overhead_requests: unloaded requests over all runs.
        overhead_words: words of an unloaded request's prompt.
    """

    config: Path
    policies: tuple[str, ...]
    rounds: int
    shape: WorkloadShape
    answer_tokens: int
    concurrency: int
    stagger_s: float
    dp_size: int | None
    num_blocks: int | Literal["config", "workload"]
    overhead_requests: int
    overhead_words: int


@dataclass(frozen=True)
class _Size:
    """A flag that takes an integer: its default, its default with `--short`, and its help."""

    flag: str
    full: int
    short: int
    help: str


_SIZES = (
    _Size("--rounds", 1, 1, "runs of each policy; their order rotates, figures are medians"),
    _Size("--system-prompts", 5, 2, "system prompts, each shared by a group of users"),
    _Size("--users", 3, 2, "users of each system prompt"),
    _Size("--turns", 4, 2, "questions of each user, one after another"),
    _Size("--system-words", 300, 100, "words of a system prompt"),
    _Size("--question-words", 40, 10, "words of a question"),
    _Size("--answer-tokens", 12, 4, "tokens of an answer"),
    _Size("--concurrency", 4, 4, "requests in flight at most"),
    _Size("--stagger-ms", 200, 50, "milliseconds between the arrivals of two users"),
    _Size("--overhead-requests", 30, 6, "unloaded requests for the overhead, over all runs"),
    _Size("--overhead-words", 40, 20, "words of an unloaded request's prompt"),
    _Size("--seed", 1, 1, "seed of all texts and of the order of arrival"),
)


def parse_options(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> Options:
    """Options from `arguments`, by default the command line's; ends the program when one is wrong."""
    _add_flags(parser)
    given = parser.parse_args(arguments)
    size = {
        item.flag: _chosen(getattr(given, _name(item.flag)), item.short if given.short else item.full)
        for item in _SIZES
    }
    return Options(
        config=given.config or DEFAULT_CONFIG,
        policies=tuple(dict.fromkeys(given.policies)),
        rounds=size["--rounds"],
        shape=WorkloadShape(
            system_prompts=size["--system-prompts"],
            users=size["--users"],
            turns=size["--turns"],
            system_words=size["--system-words"],
            question_words=size["--question-words"],
            seed=size["--seed"],
        ),
        answer_tokens=size["--answer-tokens"],
        concurrency=size["--concurrency"],
        stagger_s=size["--stagger-ms"] / 1000,
        dp_size=given.ranks,
        # A config that the user gives sets the size of its caches itself.
        num_blocks=given.num_blocks or ("config" if given.config else "workload"),
        overhead_requests=size["--overhead-requests"],
        overhead_words=size["--overhead-words"],
    )


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--short", action="store_true", help="small sizes, for a quick try or for CI")
    parser.add_argument(
        "--config",
        type=_existing_file,
        metavar="FILE",
        help="base configuration in the form of serve_config.yaml, which is the default",
    )
    parser.add_argument(
        "--policies",
        nargs="+",
        choices=tuple(POLICIES),
        default=tuple(POLICIES),
        help="policies to compare (default: all)",
    )
    parser.add_argument("--ranks", type=_positive, metavar="N", help="DP ranks (default: the config's)")
    parser.add_argument(
        "--num-blocks",
        type=_positive,
        metavar="N",
        help="KV blocks of each rank (default: the config's with --config, else two thirds of what all "
        "conversations need: enough for a rank's fair share, not for everything)",
    )
    for item in _SIZES:
        parser.add_argument(
            item.flag,
            type=_positive,
            metavar="N",
            help=f"{item.help} (default: {item.full}; with --short {item.short})",
        )


def _chosen(given: int | None, default: int) -> int:
    return default if given is None else given


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: an integer of at least 1 is needed")
    return value


def _existing_file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text!r}: no such file")
    return path
