"""One or several routers, which take the requests in turn.

Each has a core of its own, with its own load, reservations and choices, and knows at once only what it has
reserved itself. It receives the others' reservations `peer_delay_s` later, or never. The ranks' events and
load reports reach all of them at the same moment: so they share one index and one membership, which would
otherwise be the same in each.
"""

from __future__ import annotations

import random
from functools import partial
from itertools import cycle

from app.routing.core import RoutingCore
from app.routing.decisions.decision import Decision, Prompt
from app.routing.index.prefix_index import PrefixIndex
from app.routing.membership import Membership
from app.settings.routing import RoutingConfig
from app.simulation.clock import Clock
from app.simulation.config import ClusterConfig


class Routers:
    """See the module.

    Args:
        config: how many, and how soon they receive each other's reservations.
        policy: the policy's name.
        clock: gives the time and runs what arrives late.

    Attributes:
        index: what each rank holds, for all routers.
        membership: all ranks, and how well each one's cache is known, for all routers.
        cores: the routers.

    Raises:
        ConfigError: there is no such policy.
    """

    def __init__(self, config: ClusterConfig, policy: str, clock: Clock) -> None:
        routing = RoutingConfig(policy=policy, initial_prefill_tokens_per_s=config.rank.prefill_tokens_per_s)
        self.index = PrefixIndex()
        self.membership = Membership()
        self.cores = [
            RoutingCore(
                routing,
                config.ranks,
                index=self.index,
                membership=self.membership,
                rng=random.Random(config.seed + number),
            )
            for number in range(config.routers)
        ]
        self._turns = cycle(range(config.routers))
        self._peer_delay_s = config.feed.peer_delay_s
        self._clock = clock

    def choose(self, prompt: Prompt) -> Decision:
        """Let the next router choose a rank and reserve."""
        router = next(self._turns)
        decision = self.cores[router].choose(prompt, self._clock.now)
        if self._peer_delay_s is not None and len(self.cores) > 1:
            send = partial(self._send, router, prompt.request_id, decision.rank, decision.uncached_tokens)
            self._clock.schedule(self._clock.now + self._peer_delay_s, send)
        return decision

    def _send(self, router: int, request_id: str, rank: int, uncached_tokens: int) -> None:
        for number, core in enumerate(self.cores):
            if number != router:
                core.reservations.add_from_peer(
                    rank, request_id, uncached_tokens, self._clock.now, choice_seq=0
                )
