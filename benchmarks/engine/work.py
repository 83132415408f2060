"""What every engine is asked, and the rates that follow from the seconds it took."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import median

from benchmarks.engine.peers.process import Peer

PREFILL_TOKENS = 512
DECODE_PROMPT_TOKENS = 64
DECODE_TOKENS = 48
BATCHES = (1, 8, 32)
MEASURES = ("prefill_tok_s", *(f"decode_tok_s_b{batch}" for batch in BATCHES))
# Ordinary tokens of any vocabulary that is large enough to be measured.
FIRST_TOKEN, LAST_TOKEN = 100, 30_000

Figures = dict[str, float]
"""Tokens per second by `MEASURES`."""


def measure(peer: Peer, seed: int) -> Figures:
    """One round.

    Decoding is what an answer of `DECODE_TOKENS` + 1 tokens takes longer than an answer of one token; so
    neither prefill nor the way of the first token counts.
    """
    rng = random.Random(seed)
    figures = {"prefill_tok_s": PREFILL_TOKENS / peer.seconds(_prompts(rng, 1, PREFILL_TOKENS), 1)}
    for batch in BATCHES:
        first = peer.seconds(_prompts(rng, batch, DECODE_PROMPT_TOKENS), 1)
        whole = peer.seconds(_prompts(rng, batch, DECODE_PROMPT_TOKENS), 1 + DECODE_TOKENS)
        figures[f"decode_tok_s_b{batch}"] = batch * DECODE_TOKENS / (whole - first)
    return figures


def medians(rounds: Sequence[Figures]) -> Figures:
    """Each figure's median over the rounds."""
    return {name: median(figures[name] for figures in rounds) for name in MEASURES}


def ratios(own: Figures, other: Figures | None) -> dict[str, float | None]:
    """How many times as fast as `other`; null where that isn't installed."""
    return {name: None if other is None else own[name] / other[name] for name in MEASURES}


def _prompts(rng: random.Random, count: int, length: int) -> list[list[int]]:
    """Prompts that share nothing."""
    return [[rng.randint(FIRST_TOKEN, LAST_TOKEN) for _ in range(length)] for _ in range(count)]
