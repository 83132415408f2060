"""The outputs of live requests on their way to their consumers. All of it on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from app.errors import RequestError
from app.generation import TokenChunk

StreamItem = TokenChunk | RequestError
"""An error is a stream's last item."""


class OutputStream:
    """One admission's items, to be iterated once: an `AdmittedRequest`.

    Not an async generator: one that is left before its end would have to be closed too.

    Args:
        request_id: the request's; a later stream may have the same.
        num_samples: how many have to end.
        on_abort: called with the stream when it is aborted.

    Attributes:
        is_over: the last item has been put; later ones are ignored.
    """

    def __init__(self, request_id: str, num_samples: int, on_abort: Callable[[OutputStream], object]) -> None:
        self.request_id = request_id
        self.is_over = False
        self._items: asyncio.Queue[StreamItem | None] = asyncio.Queue()
        self._num_unfinished = num_samples
        self._on_abort = on_abort

    def put(self, item: StreamItem | None) -> None:
        """Add an item; None ends the stream without an error."""
        if self.is_over:
            return
        self._items.put_nowait(item)
        if isinstance(item, TokenChunk):
            self._num_unfinished -= item.finish_reason is not None
            self.is_over = self._num_unfinished == 0
        else:
            self.is_over = True

    def abort(self) -> None:
        """See `AdmittedRequest`."""
        if not self.is_over:
            self.put(None)
            self._on_abort(self)

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> TokenChunk:
        if self.is_over and self._items.empty():
            raise StopAsyncIteration
        item = await self._items.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, RequestError):
            raise item
        return item


class OutputStreams:
    """One stream per admission, until its last chunk, its error or its abortion.

    Streams are told apart by identity: chunks of an aborted request may still be under way when another one
    with its id is admitted.

    Args:
        drop: called with a stream that was aborted.
    """

    def __init__(self, drop: Callable[[OutputStream], object]) -> None:
        self._drop = drop
        self._live: set[OutputStream] = set()

    def open(self, request_id: str, num_samples: int) -> OutputStream:
        """The stream of a new admission."""
        stream = OutputStream(request_id, num_samples, self._abort)
        self._live.add(stream)
        return stream

    def deliver(self, items: Iterable[tuple[OutputStream, StreamItem]]) -> None:
        """Hand out a step's items; those of aborted requests go nowhere."""
        for stream, item in items:
            stream.put(item)
            if stream.is_over:
                self._live.discard(stream)

    def fail_all(self, new_error: Callable[[], RequestError]) -> None:
        """End every stream with an error of its own."""
        self.deliver([(stream, new_error()) for stream in self._live])

    def _abort(self, stream: OutputStream) -> None:
        self._live.discard(stream)
        self._drop(stream)
