"""Reads a request's body, compressed or not, no more of it and no longer than is allowed."""

from __future__ import annotations

import asyncio
import math
import zlib

from starlette.requests import Request

from app.errors import InvalidRequestError, RequestTooLargeError, SlowBodyError, UnsupportedEncodingError

_GZIP = 16 + zlib.MAX_WBITS  # zlib's number for a gzip header and trailer around the data


async def read_body(request: Request, limit: int, timeout_s: float = math.inf) -> bytes:
    """The body, decompressed; neither form may have more than `limit` bytes. All must come in `timeout_s`.

    Raises:
        SlowBodyError: it didn't.
        UnsupportedEncodingError: it is compressed in another way than gzip (RFC 9110, 8.4).
        RequestTooLargeError: it is larger.
        InvalidRequestError: it isn't what its Content-Encoding says.
    """
    encoding = ", ".join(request.headers.getlist("content-encoding")).strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise UnsupportedEncodingError(encoding)
    unzip = _Unzip(limit) if encoding.endswith("gzip") else None
    body = bytearray()
    in_time = asyncio.timeout(None if timeout_s == math.inf else timeout_s)
    try:
        async with in_time:
            await _read_into(body, request, unzip, limit)
    except TimeoutError:
        if not in_time.expired():
            raise
        came = f"{len(body)} bytes of the body came in {timeout_s:g} s"
        raise SlowBodyError(f"{came}, and not its end (ingress.body_timeout_s)") from None
    return bytes(body)


async def _read_into(body: bytearray, request: Request, unzip: _Unzip | None, limit: int) -> None:
    num_read = 0
    async for part in request.stream():
        num_read += len(part)
        body += part if unzip is None else unzip.take(part)
        if max(num_read, len(body)) > limit:
            raise RequestTooLargeError(f"the body is larger than {limit} bytes")
    if unzip is not None:
        unzip.check_whole()


class _Unzip:
    """Decompresses one body, but no more than a little beyond `limit` bytes of it."""

    def __init__(self, limit: int) -> None:
        self._room = limit + 1
        self._stream = zlib.decompressobj(_GZIP)

    def take(self, part: bytes) -> bytes:
        if not part:
            return b""
        if self._stream.eof:
            raise _not_gzip("something follows its end")
        try:
            data = self._stream.decompress(part, max(self._room, 1))
        except zlib.error:
            raise _not_gzip("its data is broken") from None
        self._room -= len(data)
        if self._stream.unused_data:
            raise _not_gzip("something follows its end")
        return data

    def check_whole(self) -> None:
        if not self._stream.eof:
            raise _not_gzip("it ends too early")


def _not_gzip(why: str) -> InvalidRequestError:
    return InvalidRequestError(f"the body isn't gzip: {why}", param="Content-Encoding", code="invalid_gzip")
