"""A response's output while its parts come: items, one after the other, and the events that show them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from app.api.openai.message_parts import call_id
from app.api.responses.open_items import (
    CustomCallItem,
    FunctionCallItem,
    Json,
    MessageItem,
    OpenItem,
    ReasoningItem,
    Status,
)
from app.api.responses.tools import Offer
from app.text.output.parts import CallArguments, CallStart, Part, Text, Thought


class OutputItems:
    """One response's output.

    Args:
        request_id: the request's, by which the same items have the same ids everywhere.
        offers: the tools, by the names that the model knows.
        id_chars: characters of a call's id; None is OpenAI's form.
        packs_thoughts: whether thoughts come in a form that every client sends back, too.
    """

    def __init__(
        self, request_id: str, offers: Mapping[str, Offer], *, id_chars: int | None, packs_thoughts: bool
    ) -> None:
        self._request_id = request_id
        self._offers = offers
        self._id_chars = id_chars
        self._packs_thoughts = packs_thoughts
        self._open: OpenItem | None = None
        self._num_calls = 0
        self._unplaced: list[Json] = []
        self._done: list[Json] = []

    @property
    def items(self) -> list[Json]:
        """The items that are closed."""
        return list(self._done)

    @property
    def is_thinking(self) -> bool:
        """Whether the last part was a thought."""
        return isinstance(self._open, ReasoningItem)

    def take(self, parts: Sequence[Part], logprobs: Sequence[Json] = ()) -> Iterator[Json]:
        """The events that show these parts.

        Args:
            parts: what has become certain.
            logprobs: the entries of the tokens that came with them. They are shown with the next text; tokens
                of thoughts and calls have none.
        """
        self._unplaced += logprobs
        for part in parts:
            match part:
                case Text(text):
                    yield from self._say(text)
                case Thought(text):
                    yield from self._switch(ReasoningItem)
                    assert self._open is not None
                    yield from self._open.add(text)
                case CallStart(index, name):
                    yield from self._close("completed")
                    yield from self._begin(self._call(index, name))
                case CallArguments(_, text):
                    assert self._open is not None
                    yield from self._open.add(text)
            self._unplaced.clear()

    def end(self, status: Status) -> Iterator[Json]:
        """The events that end a whole output, which has a message or calls; `status` is the last item's."""
        if not self._num_calls and not any(item["type"] == "message" for item in self._done):
            yield from self._switch(MessageItem)
        yield from self.break_off(status)

    def break_off(self, status: Status = "incomplete") -> Iterator[Json]:
        """The events that close what is open."""
        if isinstance(self._open, MessageItem):
            self._open.take_logprobs(self._unplaced)
        yield from self._close(status)

    def _say(self, text: str) -> Iterator[Json]:
        # White space after a call only stands between it and the next one.
        if self._num_calls and not text.strip() and not isinstance(self._open, MessageItem):
            return
        yield from self._switch(MessageItem)
        assert self._open is not None
        yield from self._open.add(text, tuple(self._unplaced))

    def _switch(self, kind: type[MessageItem | ReasoningItem]) -> Iterator[Json]:
        """Open an item of this kind, unless it is open."""
        if isinstance(self._open, kind):
            return
        yield from self._close("completed")
        place = len(self._done)
        if kind is MessageItem:
            yield from self._begin(MessageItem(self._id("msg", place), place))
        else:
            packs = self._packs_thoughts
            yield from self._begin(ReasoningItem(self._id("rs", place), place, packs=packs))

    def _call(self, index: int, name: str) -> OpenItem:
        self._num_calls += 1
        place = len(self._done)
        offer = self._offers.get(name)
        is_custom = offer is not None and offer.is_custom
        new = CustomCallItem if is_custom else FunctionCallItem
        return new(
            self._id("ctc" if is_custom else "fc", place),
            place,
            call_id=call_id(f"{self._request_id}-0", index, self._id_chars),
            name=name if offer is None else offer.own_name,
            namespace=None if offer is None else offer.namespace,
        )

    def _begin(self, item: OpenItem) -> Iterator[Json]:
        self._open = item
        yield from item.begin()

    def _close(self, status: Status) -> Iterator[Json]:
        item, self._open = self._open, None
        if item is not None:
            yield from item.end(status)
            self._done.append(item.shown(status))

    def _id(self, prefix: str, place: int) -> str:
        digest = hashlib.sha256(f"{self._request_id}-item-{place}".encode()).hexdigest()
        return f"{prefix}_{digest[:32]}"
