"""What a client is told of its prompt's cached and missed tokens: in a header, and in the answer's usage."""

from __future__ import annotations

from collections.abc import Mapping

from app.deployments.ingress.dispatch.rank_stream import RankStream
from app.deployments.messages import FoundMisses
from app.routing.misses.miss import PLACED, REASONS, settled, tokens_by_reason

CACHE_HEADER = "x-kvbeacon-cache"


class CacheReport:
    """One request's. What it says is of the rank that sent the first token, also if another goes on later."""

    def __init__(self) -> None:
        self._choice_seq: int | None = None
        self._found: FoundMisses | None = None
        self._num_prompt_tokens = 0
        self._num_cached_tokens = 0
        self._has_begun = False

    def expect(self, choice_seq: int) -> None:
        """A rank was chosen, by the choice with this number."""
        if not self._has_begun:
            self._choice_seq, self._found = choice_seq, None

    def take(self, choice_seq: int, found: FoundMisses) -> None:
        """What a router found of a choice."""
        if choice_seq == self._choice_seq:
            self._found = found

    def begin(self, stream: RankStream) -> None:
        """The first token has come."""
        self._has_begun = True
        self._num_prompt_tokens = stream.num_prompt_tokens
        self._num_cached_tokens = stream.num_cached_tokens

    def header(self) -> dict[str, str]:
        """`hit=1024 diverged=16@1030 volatile=5888@1030 tail=6`: tokens by reason, where something changed.

        All numbers sum to the prompt's tokens. Before the reasons are known: `hit=1024 missed=5910`.
        """
        change = None if self._found is None else self._found.change
        places = dict.fromkeys(PLACED, f"@{change.token}") if change is not None else {}
        parts = [f"{reason}={tokens}{places.get(reason, '')}" for reason, tokens in self.counts().items()]
        return {CACHE_HEADER: " ".join(parts)}

    def counts(self) -> dict[str, int]:
        """Tokens that were cached (`hit`), and the others by reason; before these are known as `missed`."""
        missed = self.missed() or {"missed": self._num_prompt_tokens - self._num_cached_tokens}
        return {"hit": self._num_cached_tokens, **missed}

    def missed(self) -> Mapping[str, int]:
        """Missed tokens by reason, without reasons that have none; empty while they aren't known."""
        if self._found is None:
            return {}
        counts = tokens_by_reason(
            settled(self._found.misses, self._num_prompt_tokens, self._num_cached_tokens)
        )
        return {reason: counts[reason] for reason in REASONS if counts[reason]}

    def details(self) -> dict[str, int]:
        """The same as members of `usage.prompt_tokens_details`."""
        return {f"{reason}_tokens": tokens for reason, tokens in self.missed().items()}
