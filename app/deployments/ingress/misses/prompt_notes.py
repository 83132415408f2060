"""Tells the routers what prompts hold, and gets the misses for it, while ranks compute.

    choice ──▶ rank called ──▶ outline ──▶ note ──(in batches)──▶ all routers ──▶ misses ──▶ CacheReport
                          └──────────────▶ first token, headers ──────────────▶ last token, usage

The client's answer waits for none of this. Headers are written with the first token, so they have the reasons
if these have come by then, as they mostly have; usage comes at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from app import hashing
from app.api.bodies import PromptBody
from app.deployments.background import BatchSender, detached_task
from app.deployments.ingress.misses.cache_report import CacheReport
from app.deployments.ingress.request_reader import LONG_BODY, PreparedRequest
from app.deployments.messages import Assignment, ChooseRequest, FoundMisses, PromptNote
from app.text.outline import Outline, outline_of_text, outline_of_tokens
from app.text.tokenizer import Tokenizer

INTERVAL_S = 0.02
"""Seconds for which notes are collected while many come."""


class NotedRouters(Protocol):
    """What is needed of routers; `RouterClient` has it."""

    async def note_prompts(self, notes: Sequence[PromptNote]) -> list[FoundMisses | None]:
        """For each note, the misses, where the router that has chosen answers. Never raises."""


@dataclass(frozen=True)
class _Waiting:
    """A note, and who wants what is found."""

    note: PromptNote
    take: Callable[[FoundMisses], None]


class PromptNotes:
    """One ingress's notes.

    Args:
        routers: get them.
        tokenizer: the model's.
        block_size: tokens per KV block.
        num_routers: with several, those that haven't chosen learn the prompt's blocks too.
        with_texts: whether routers get the prompts' texts.
    """

    def __init__(
        self,
        routers: NotedRouters,
        tokenizer: Tokenizer,
        *,
        block_size: int,
        num_routers: int,
        with_texts: bool,
    ) -> None:
        self._routers = routers
        self._tokenizer = tokenizer
        self._block_size = block_size
        self._num_routers = num_routers
        self._with_texts = with_texts
        self._sender = BatchSender(self._send, interval_s=INTERVAL_S)
        self._tasks: set[asyncio.Task[None]] = set()
        """Keeps tasks that aren't awaited from being collected before they end."""

    def of(self, prepared: PreparedRequest[PromptBody]) -> RequestNotes:
        """The notes of one request."""
        return RequestNotes(self, prepared)

    def put(self, note: PromptNote, take: Callable[[FoundMisses], None]) -> None:
        """Have a note sent soon; `take` gets what is found, if an answer comes."""
        self._sender.put(_Waiting(note, take))

    def start(self, request: RequestNotes, choose: ChooseRequest, assignment: Assignment, seq: int) -> None:
        """Have a choice noted, once its rank has been called."""
        task = detached_task(self._note(request, choose, assignment, seq))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def outline(self, prepared: PreparedRequest[PromptBody]) -> Outline:
        """The content of a request's prompt; may take some milliseconds for a long one."""
        source, token_ids = prepared.source, prepared.generate.prompt_token_ids
        seed = hashing.seed(prepared.generate.cache_salt)
        if source.text is None:
            return outline_of_tokens(token_ids, self._block_size, seed)
        sizes = self._tokenizer.token_sizes(token_ids)
        return outline_of_text(source.text, source.spans(), sizes, seed, with_texts=self._with_texts)

    async def _note(
        self, request: RequestNotes, choose: ChooseRequest, assignment: Assignment, seq: int
    ) -> None:
        outline = await request.outline()
        note = PromptNote(
            choose.request_id,
            seq,
            assignment.rank,
            request.prepared.tenant,
            outline,
            choose.block_hashes if self._num_routers > 1 else (),
        )
        self.put(note, lambda found: request.report.take(seq, found))

    async def _send(self, waiting: list[_Waiting]) -> None:
        answers = await self._routers.note_prompts([each.note for each in waiting])
        for each, found in zip(waiting, answers, strict=True):
            if found is not None:
                each.take(found)


class RequestNotes:
    """One request's: a note for each choice of a rank, and the report for its client.

    Attributes:
        prepared: the request.
        report: what its client is told.
    """

    def __init__(self, notes: PromptNotes, prepared: PreparedRequest[PromptBody]) -> None:
        self.prepared = prepared
        self.report = CacheReport()
        self._notes = notes
        self._outline: Outline | None = None

    def on_choice(self, choose: ChooseRequest, assignment: Assignment, choice_seq: int) -> None:
        """A rank was chosen, and will be called now."""
        self.report.expect(choice_seq)
        self._notes.start(self, choose, assignment, choice_seq)

    async def outline(self) -> Outline:
        """The content of the prompt; of a long one made in a thread."""
        if self._outline is None:
            is_long = len(self.prepared.source.text or "") >= LONG_BODY
            make = self._notes.outline
            made = await asyncio.to_thread(make, self.prepared) if is_long else make(self.prepared)
            self._outline = made
        return self._outline
