"""One router's misses: found after each choice, completed by the ingress, counted with the first token.

    choose ──▶ find ──▶ Case ◀── note: content, tenant (from the ingress, in batches)
                         │  ◀── outcome: what the rank had cached, or that nothing came of it
                         ▼
                       tally, receipts

Everything here comes after the answer to the choice: no request waits for it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec

from app.routing.decisions.decision import Decision, Prompt
from app.routing.decisions.decision_log import Outcome
from app.routing.index.prefix_index import PrefixIndex
from app.routing.misses.computing import MAX_COMPUTING, Choice, ComputingRequests
from app.routing.misses.contents import add_content
from app.routing.misses.finder import Findings, MissFinder
from app.routing.misses.miss import Change, Json, Miss, settled, tokens_by_reason
from app.routing.misses.prompt_memory import PromptMemory
from app.routing.misses.removals import Removals
from app.routing.misses.tally import MissTally
from app.text.outline import Outline


class Case(msgspec.Struct, eq=False):
    """One choice's misses.

    Attributes:
        num_tokens: of the prompt.
        findings: what was found when it was made.
        tenant: the tenant's label; None if there are no tenants, or before the note.
        change: where the prompt parts from an earlier one, after the note.
        is_noted: whether the note has come.
        cached_tokens: what the rank had cached, once it has sent a token.
        is_counted: whether that has been counted.
    """

    num_tokens: int
    findings: Findings
    tenant: str | None = None
    change: Change | None = None
    is_noted: bool = False
    cached_tokens: int | None = None
    is_counted: bool = False

    @property
    def misses(self) -> list[Miss]:
        """As far as is known now."""
        misses = self.findings.misses
        return misses if self.cached_tokens is None else settled(misses, self.num_tokens, self.cached_tokens)


class MissBook:
    """See the module. All on one event loop.

    Args:
        index: what the ranks hold; this takes its `on_removed`.
        capacity: blocks that are remembered: of prompts, of what ranks dropped, and pieces of content.
        remembered: choices whose misses are kept for receipts; more are if so many may be open.
        clock: gives the time in seconds.

    Attributes:
        tally: the counters.
    """

    def __init__(
        self,
        index: PrefixIndex,
        capacity: int,
        remembered: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tally = MissTally()
        self._clock = clock
        self._capacity = capacity
        self._removals = Removals(capacity, clock)
        self._memory = PromptMemory(capacity)
        self._computing = ComputingRequests()
        self._finder = MissFinder(index, self._removals, self._memory, self._computing)
        self._remembered = max(remembered, MAX_COMPUTING)
        self._cases: OrderedDict[Choice, Case] = OrderedDict()
        index.on_removed = self._removals.add

    def find(self, prompt: Prompt, decision: Decision) -> Case:
        """The misses of a choice that was just made."""
        findings = self._finder.find(prompt, decision, self._clock())
        choice = (prompt.request_id, prompt.choice_seq)
        case = self._cases[choice] = Case(prompt.num_tokens, findings)
        if len(self._cases) > self._remembered:
            self._cases.popitem(last=False)
        return case

    def note(self, choice: Choice, tenant: str | None, outline: Outline | None) -> Case | None:
        """The content of a prompt that was chosen for here; None if that isn't known, or any more."""
        case = self._cases.get(choice)
        if case is None or case.is_noted:
            return case
        case.is_noted, case.tenant = True, tenant
        case.change = add_content(case.findings, outline, self._memory)
        case.findings.seen = case.findings.parted_from = None  # they may be forgotten from now on
        self._count(case)
        return case

    def learn(
        self, choice: Choice, blocks: Sequence[int], rank: int, outline: Outline | None, block_size: int
    ) -> None:
        """A prompt that another router has chosen for."""
        seen = self._finder.learn(choice, blocks, rank, self._clock())
        if seen is not None and outline is not None:
            self._memory.add_content(seen, outline, block_size)

    def record_outcome(self, outcome: Outcome) -> None:
        """What became of a request, at this router or another."""
        choice = (outcome.request_id, outcome.choice_seq)
        self._computing.end(choice)
        case = self._cases.get(choice)
        if case is not None and case.cached_tokens is None and outcome.cached_tokens is not None:
            case.cached_tokens = min(outcome.cached_tokens, case.num_tokens)
            self._count(case)

    def receipt(self, choice: Choice) -> Json | None:
        """What is known of a choice's misses; None if that isn't remembered."""
        case = self._cases.get(choice)
        if case is None:
            return None
        misses = case.misses
        return {
            "noted": case.is_noted,
            "tokens": sum(each.num_tokens for each in misses),
            "by_reason": dict(tokens_by_reason(misses)),
            "runs": msgspec.to_builtins(misses),
            "changed_at": None if case.change is None else msgspec.to_builtins(case.change),
        }

    def table(self, model: str) -> Json:
        """Missed tokens by reason, the requests and prompt tokens that they are of, and the worst places."""
        tally = self.tally
        return {
            "tokens": dict(tally.tokens),
            "requests": tally.requests,
            "prompt_tokens": tally.prompt_tokens,
            "rows": tally.table(model),
            "memory": {
                "prompt_blocks": self._memory.num_blocks,
                "dropped_blocks": len(self._removals),
                "content_pieces": self._memory.num_pieces,
                "capacity": self._capacity,
            },
        }

    def _count(self, case: Case) -> None:
        """Once the rank has sent a token and the content is known."""
        if case.is_noted and case.cached_tokens is not None and not case.is_counted:
            case.is_counted = True
            self.tally.add(case.tenant, case.num_tokens, case.misses, case.change)
