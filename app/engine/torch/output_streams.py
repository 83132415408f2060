"""The outputs of live requests on their way to their consumers. All of it on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

from app.errors import InvalidRequestError, RequestError
from app.generation import TokenChunk

StreamItem = TokenChunk | RequestError
"""An error is a stream's last item."""


class OutputStreams:
    """One stream per live request, from its admission to its last chunk, its error or its abortion."""

    def __init__(self) -> None:
        self._streams: dict[str, _OutputStream] = {}

    def open(self, request_id: str, num_samples: int) -> AsyncIterator[TokenChunk]:
        """The chunks of a new request, to be iterated once; an error is raised in their place.

        Raises:
            InvalidRequestError: a live request has this id.
        """
        if request_id in self._streams:
            raise InvalidRequestError(f"request_id = {request_id!r}: a live request has this id")
        stream = self._streams[request_id] = _OutputStream(num_samples)
        return stream

    def deliver(self, items: Iterable[tuple[str, StreamItem]]) -> None:
        """Hand out a step's items; those of requests that were aborted have no stream any more."""
        for request_id, item in items:
            stream = self._streams.get(request_id)
            if stream is not None:
                stream.put(item)
                if stream.is_over:
                    del self._streams[request_id]

    def end(self, request_id: str) -> bool:
        """End a stream where it is; whether there was one."""
        stream = self._streams.pop(request_id, None)
        if stream is None:
            return False
        stream.put(None)
        return True

    def fail_all(self, new_error: Callable[[], RequestError]) -> None:
        """End every stream with an error of its own."""
        self.deliver([(request_id, new_error()) for request_id in self._streams])


class _OutputStream:
    """An iterator over one request's items; None ends it early.

    Not an async generator: one that is left before its end would have to be closed too.

    Attributes:
        is_over: the last item has been put.
    """

    def __init__(self, num_samples: int) -> None:
        self.is_over = False
        self._items: asyncio.Queue[StreamItem | None] = asyncio.Queue()
        self._num_unfinished = num_samples

    def put(self, item: StreamItem | None) -> None:
        self._items.put_nowait(item)
        if isinstance(item, TokenChunk):
            self._num_unfinished -= item.finish_reason is not None
            self.is_over = self._num_unfinished == 0
        else:
            self.is_over = True

    def __aiter__(self) -> _OutputStream:
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
