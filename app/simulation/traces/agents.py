"""Generates agents: sessions whose prompts grow, fork, are cut and rewritten; a batch runs beside them.

A session begins with a system prompt and a task. Each later turn has the prompt so far and what came since:
the answer, a tool's output, the next message.

    turn 1         |system prompt|task|
    turn 2         |system prompt|task|new|
    sub-agent      |system prompt|ta|its own task|          of turn 2; the session waits until it is through
    turn 3         |system prompt|task|new|new|
    after an edit  |system prompt|task|ne|new'|             all from one block on is other text
    after a cut    |system prompt|task|summary|new|         the prompt had become too long

Who thinks for how long is independent of how fast the ranks answer, so a trace is the same for all policies.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
from typing import Annotated, Final

from pydantic import Field

from app.settings.base import PositiveFloat, PositiveInt, Settings
from app.simulation.traces.request import FIRST_TURN, LATER_TURN, SimulatedRequest

SUB_AGENT: Final = "sub-agent"
AFTER_EDIT: Final = "after an edit"
AFTER_CUT: Final = "after a cut"
SWEEP: Final = "sweep"

Blocks = tuple[int, ...]
"""Names of a prompt's blocks."""
Share = Annotated[float, Field(ge=0, le=1)]
Mean = Annotated[float, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]


class Agents(Settings):
    """Sessions of agents, and a sweep over documents that are read once. Blocks are full."""

    duration_s: PositiveFloat = Field(3600.0, description="Seconds; what would come later isn't made.")
    sessions_per_s: PositiveFloat = Field(0.2, description="Sessions that start each second (Poisson).")
    turns: Mean = Field(15.0, description="Turns of a session, on average (geometric).")
    think_median_s: PositiveFloat = Field(
        10.0, description="Seconds from a request of a session to its next, median (log-normal)."
    )
    think_sigma: NotNegative = Field(
        1.2, description="Standard deviation of the logarithm of these seconds; 0: all the same."
    )
    system_prompts: PositiveInt = Field(4, description="System prompts; each session has one of them.")
    system_skew: NotNegative = Field(1.0, description="The k-th is chosen as often as 1 / k^skew.")
    system_blocks: PositiveInt = Field(8, description="Blocks of a system prompt.")
    task_blocks: Mean = Field(3.0, description="Blocks of a task, on average (geometric).")
    turn_blocks: Mean = Field(2.0, description="Blocks that are new in a later turn, on average (geometric).")
    sub_agent_share: Share = Field(0.05, description="Share of turns after which a sub-agent is started.")
    sub_agent_turns: Mean = Field(4.0, description="Turns of a sub-agent, on average (geometric).")
    edit_share: Share = Field(
        0.02, description="Share of later turns before which the prompt is rewritten from a block of it on."
    )
    max_blocks: PositiveInt = Field(
        60, description="Blocks after the system prompt beyond which a prompt is cut."
    )
    kept_blocks: PositiveInt = Field(4, description="Of these, the first ones that a cut leaves.")
    summary_blocks: PositiveInt = Field(3, description="Blocks of the summary that replaces the rest.")
    documents_per_s: NotNegative = Field(0.5, description="Documents of the sweep each second (Poisson).")
    document_blocks: PositiveInt = Field(24, description="Blocks of a document, without the instruction.")
    instruction_blocks: PositiveInt = Field(4, description="Blocks that all prompts of the sweep begin with.")
    output_tokens: PositiveInt = Field(200, description="Tokens of an answer.")
    seed: int = Field(0, description="Of everything that is left to chance.")

    def requests(self, block_size: int) -> Iterator[SimulatedRequest]:
        """The requests in the order of arrival, made one at a time; the same at every call.

        Args:
            block_size: tokens of a block.
        """
        maker = _Maker(block_size, self.output_tokens)
        systems = [maker.new_blocks(self.system_blocks) for _ in range(self.system_prompts)]
        weights = list(accumulate(1 / (k + 1) ** self.system_skew for k in range(self.system_prompts)))
        rng = random.Random(self.seed)
        streams = [self._sweep(maker)]
        for number, start_s in enumerate(_moments(rng, self.sessions_per_s, self.duration_s)):
            (system,) = rng.choices(systems, cum_weights=weights)
            own_rng = random.Random(f"{self.seed} session {number}")
            streams.append(_Session(self, own_rng, maker, system, f"agent {number}").requests(start_s))
        merged = heapq.merge(*streams, key=lambda request: request.arrival_s)
        return takewhile(lambda request: request.arrival_s < self.duration_s, merged)

    def _sweep(self, maker: _Maker) -> Iterator[SimulatedRequest]:
        instruction = maker.new_blocks(self.instruction_blocks)
        rng = random.Random(f"{self.seed} sweep")
        for moment in _moments(rng, self.documents_per_s, self.duration_s):
            yield maker.request(moment, instruction + maker.new_blocks(self.document_blocks), None, SWEEP)


class _Maker:
    """Makes blocks, none twice, and requests of them."""

    def __init__(self, block_size: int, output_tokens: int) -> None:
        self._block_size = block_size
        self._output_tokens = output_tokens
        self._next = 0

    def new_blocks(self, number: int) -> Blocks:
        self._next += number
        return tuple(range(self._next - number, self._next))

    def request(
        self, arrival_s: float, blocks: Blocks, session_id: str | None, name: str
    ) -> SimulatedRequest:
        num_tokens = len(blocks) * self._block_size
        return SimulatedRequest(arrival_s, num_tokens, self._output_tokens, blocks, session_id, name)


@dataclass
class _Session:
    """One session: what it draws from, its system prompt and its name."""

    agents: Agents
    rng: random.Random
    maker: _Maker
    system: Blocks
    session_id: str
    num_sub_agents: int = field(default=0, init=False)

    def requests(self, now: float) -> Iterator[SimulatedRequest]:
        """Its requests and its sub-agents', the first at `now`."""
        own: Blocks = ()
        for turn in range(_geometric(self.rng, self.agents.turns)):
            own, name = self._next_prompt(own) if turn else (self._task(), FIRST_TURN)
            yield self.maker.request(now, self.system + own, self.session_id, name)
            now = self._after_thinking(now)
            if self.rng.random() < self.agents.sub_agent_share:
                for request in self._sub_agent(own, now):
                    yield request
                    now = self._after_thinking(request.arrival_s)

    def _sub_agent(self, own: Blocks, now: float) -> Iterator[SimulatedRequest]:
        """It begins with a part of the session's prompt, from the system prompt alone to all."""
        self.num_sub_agents += 1
        session_id = f"{self.session_id}.{self.num_sub_agents}"
        own = own[: self.rng.randint(0, len(own))] + self._task()
        for turn in range(_geometric(self.rng, self.agents.sub_agent_turns)):
            if turn:
                own, _ = self._next_prompt(own)
                now = self._after_thinking(now)
            yield self.maker.request(now, self.system + own, session_id, SUB_AGENT)

    def _next_prompt(self, own: Blocks) -> tuple[Blocks, str]:
        """What follows the system prompt in the next turn, and that turn's class."""
        agents, new_blocks, name = self.agents, self.maker.new_blocks, LATER_TURN
        if self.rng.random() < agents.edit_share:
            kept = self.rng.randrange(len(own))
            own, name = own[:kept] + new_blocks(len(own) - kept), AFTER_EDIT
        new = new_blocks(_geometric(self.rng, agents.turn_blocks))
        if len(own) + len(new) > agents.max_blocks:
            own, name = own[: agents.kept_blocks] + new_blocks(agents.summary_blocks), AFTER_CUT
        return own + new, name

    def _task(self) -> Blocks:
        return self.maker.new_blocks(_geometric(self.rng, self.agents.task_blocks))

    def _after_thinking(self, now: float) -> float:
        agents = self.agents
        return now + self.rng.lognormvariate(math.log(agents.think_median_s), agents.think_sigma)


def _moments(rng: random.Random, per_s: float, end_s: float) -> Iterator[float]:
    """A Poisson process from 0 to `end_s`."""
    now = 0.0
    while per_s and (now := now + rng.expovariate(per_s)) < end_s:
        yield now


def _geometric(rng: random.Random, mean: float) -> int:
    """At least 1."""
    return 1 if mean == 1 else 1 + int(math.log(1 - rng.random()) / math.log(1 - 1 / mean))
