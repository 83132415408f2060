"""One or several routers, which take the requests in turn.

Each has a load book and a chooser of its own, and knows at once only what it has reserved itself. Of the
others' reservations it hears `peer_delay_s` later, or never. The ranks' events and load reports reach all of
them at the same moment: so they share one index, which would otherwise be the same in each.
"""

from __future__ import annotations

import random
from functools import partial
from itertools import cycle

from app.config import PolicyName, RoutingConfig
from app.routing.decisions.chooser import Chooser, Decision, Prompt
from app.routing.index.prefix_index import PrefixIndex
from app.routing.load.load_book import LoadBook
from app.routing.membership import RoutableRanks
from app.simulation.clock import Clock
from app.simulation.config import ClusterConfig


class Routers:
    """See the module.

    Args:
        config: how many, and how soon they hear of each other.
        policy: the policy's config name.
        clock: gives the time and runs what is heard late.

    Attributes:
        index: what each rank holds.
        loads: the routers' load books.
    """

    def __init__(self, config: ClusterConfig, policy: PolicyName, clock: Clock) -> None:
        routing = RoutingConfig(policy=policy, initial_prefill_tokens_per_s=config.rank.prefill_tokens_per_s)
        self.index = PrefixIndex()
        self.loads = [LoadBook(routing) for _ in range(config.routers)]
        self._choosers = [
            Chooser(self.index, load, policy, config.ranks, random.Random(config.seed + number))
            for number, load in enumerate(self.loads)
        ]
        self._turns = cycle(range(config.routers))
        self._peer_delay_s = config.feed.peer_delay_s
        self._clock = clock

    def choose(self, prompt: Prompt, alive: RoutableRanks) -> Decision:
        """Let the next router choose a rank and reserve."""
        router = next(self._turns)
        decision = self._choosers[router].choose(prompt, alive, self._clock.now)
        if self._peer_delay_s is not None and len(self.loads) > 1:
            tell = partial(self._tell, router, prompt.request_id, decision.rank, decision.uncached_tokens)
            self._clock.schedule(self._clock.now + self._peer_delay_s, tell)
        return decision

    def _tell(self, router: int, request_id: str, rank: int, uncached_tokens: int) -> None:
        for number, load in enumerate(self.loads):
            if number != router:
                load.add_peer_reservation(rank, request_id, uncached_tokens, self._clock.now, choice_seq=0)
