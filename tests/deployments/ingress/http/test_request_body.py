"""Bodies as they come: in parts, compressed, too large, broken."""

from __future__ import annotations

import asyncio
import gzip
import random
import zlib

import pytest
from starlette.requests import Request
from starlette.types import Message

from app.deployments.ingress.http.request_body import read_body
from app.errors import InvalidRequestError, RequestTooLargeError, SlowBodyError, UnsupportedEncodingError

TEXT = b'{"prompt": "Hello, hello, hello"}'


async def read(body: bytes, *encodings: str, limit: int = 1000, part_size: int = 7) -> bytes:
    parts = [body[start : start + part_size] for start in range(0, len(body), part_size)] or [b""]
    waiting = iter(parts)
    num_left = len(parts)

    async def receive() -> Message:
        nonlocal num_left
        num_left -= 1
        return {"type": "http.request", "body": next(waiting), "more_body": num_left > 0}

    headers = [(b"content-encoding", each.encode()) for each in encodings]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    return await read_body(Request(scope, receive), limit)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP", " gzip "])
@pytest.mark.parametrize("part_size", [1, 7, 1000])
async def test_a_compressed_body_is_read(encoding: str, part_size: int) -> None:
    assert await read(gzip.compress(TEXT), encoding, part_size=part_size) == TEXT


@pytest.mark.parametrize("encodings", [(), ("identity",), ("",)])
async def test_a_plain_body_is_read(encodings: tuple[str, ...]) -> None:
    assert await read(TEXT, *encodings) == TEXT


@pytest.mark.parametrize("encodings", [("br",), ("deflate",), ("gzip, gzip",), ("gzip", "gzip"), ("zstd",)])
async def test_another_compression_is_named(encodings: tuple[str, ...]) -> None:
    with pytest.raises(UnsupportedEncodingError) as caught:
        await read(TEXT, *encodings)
    assert caught.value.status == 415
    assert caught.value.message == (
        f"Content-Encoding = '{', '.join(encodings)}': allowed are 'gzip' and none"
    )


async def test_the_limit_holds_for_both_forms() -> None:
    noise = random.Random(5).randbytes(2000)
    for body, encodings in (
        (noise, ()),
        (gzip.compress(noise), ("gzip",)),
        (gzip.compress(bytes(10**7)), ("gzip",)),
    ):
        with pytest.raises(RequestTooLargeError, match="larger than 1000 bytes"):
            await read(body, *encodings, part_size=500)
    assert await read(gzip.compress(bytes(1000)), "gzip") == bytes(1000)
    with pytest.raises(RequestTooLargeError):
        await read(gzip.compress(bytes(1001)), "gzip")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param(TEXT, "its data is broken", id="text"),
        pytest.param(zlib.compress(TEXT), "its data is broken", id="zlib"),
        pytest.param(gzip.compress(TEXT)[:-5], "it ends too early", id="no trailer"),
        pytest.param(b"", "it ends too early", id="empty"),
        pytest.param(gzip.compress(TEXT) + b"more", "something follows its end", id="more"),
        pytest.param(gzip.compress(TEXT)[:-8] + bytes(8), "its data is broken", id="wrong checksum"),
    ],
)
@pytest.mark.parametrize("part_size", [1, 1000])
async def test_what_is_no_gzip_is_refused(body: bytes, why: str, part_size: int) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await read(body, "gzip", part_size=part_size)
    assert caught.value.message == f"the body isn't gzip: {why}"


async def test_a_body_that_trickles_is_cut_off() -> None:
    async def receive() -> Message:
        await asyncio.sleep(0.001)
        return {"type": "http.request", "body": b"x", "more_body": True}

    request = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)
    with pytest.raises(SlowBodyError, match=r"bytes of the body came in 0.05 s, and not its end") as refusal:
        await read_body(request, 10_000, 0.05)
    assert refusal.value.headers == {"connection": "close"}
