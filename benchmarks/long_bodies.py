"""How long a short request takes to read beside long bodies: `python -m benchmarks.long_bodies`.

One ingress's reader, with the default model's tokenizer, in one process: bodies of every kind that costs much
come one after another, in a thread as in an ingress, and short chats come meanwhile on the event loop. Before
it, the short ones alone. Times are of reading: body, JSON, template, tokens.

The last line is one JSON object: for each kind, `p50_ms`, `p99_ms` and `max_ms` of the short request, how
often it was read (`short`), and `long_ms`, the long one's own mean.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.types import Message

from app.api.bodies import PromptBody
from app.api.openai.requests import parse_chat, parse_text
from app.deployments.ingress.request_reader import RequestReader
from app.errors import RequestError
from app.models.context import context_length, resolve_max_model_len
from app.models.store import resolve_model
from app.settings.ingress import IngressConfig
from app.settings.model import ModelConfig
from app.text.chat_prompt import ChatPrompter
from app.text.output.formats import OutputFormats
from app.text.tokenizer import Tokenizer

PAUSE_S = 0.002
"""Between two short requests."""
SHORT = json.dumps({"messages": [{"role": "user", "content": "What is the capital of France?"}]}).encode()
Parse = Callable[[bytes], PromptBody]


def long_bodies(context: int) -> dict[str, tuple[bytes, Parse]]:
    """Bodies just below 4 MiB, or just as long as the context allows, by what is in them."""

    def body(**fields: Any) -> bytes:
        return json.dumps(fields, separators=(",", ":")).encode()

    message = {"role": "user", "content": "a"}
    return {
        "ids, 2 million": (body(prompt=[1] * 2_000_000), parse_text),
        "ids, the context": (body(prompt=[1000] * context), parse_text),
        "text, 4 MB": (body(prompt="hello world " * 340_000), parse_text),
        "text, the context": (body(prompt="hello world " * (context // 2 - 1)), parse_text),
        "text, 4 MB of escapes": (body(prompt='"\n' * 900_000), parse_text),
        "chat, 90,000 messages": (body(messages=[message] * 90_000), parse_chat),
        "chat, 4,000 messages": (body(messages=[message] * 4000), parse_chat),
        "objects, 1 million": (body(prompt="a", x=[{}] * 1_000_000), parse_text),
    }


def new_reader(most: int) -> RequestReader:
    """As an ingress has it."""
    config, folder = ModelConfig(), resolve_model(ModelConfig())
    tokenizer = Tokenizer.from_folder(folder)
    return RequestReader(
        IngressConfig(),
        tokenizer,
        ChatPrompter(tokenizer, config, most=most),
        OutputFormats(tokenizer, config, constrains=True),
        model_names=("model",),
        max_model_len=most,
    )


async def read_s(reader: RequestReader, body: bytes, parse: Parse) -> float:
    """Seconds that reading, or refusing, a body takes."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    began = time.perf_counter()
    with suppress(RequestError):
        await reader.read(Request({"type": "http", "method": "POST", "headers": []}, receive), parse)
    return time.perf_counter() - began


async def measure(
    reader: RequestReader, long: tuple[bytes, Parse] | None, seconds: float
) -> dict[str, float]:
    """The short request's times while long ones come one after another."""
    until = time.perf_counter() + seconds
    long_times: list[float] = []

    async def send_long() -> None:
        while long is not None and time.perf_counter() < until:
            long_times.append(await read_s(reader, *long))

    sending = asyncio.create_task(send_long())
    times = []
    while time.perf_counter() < until:
        # The pause counts as far as it is too long: the event loop was held up.
        began = time.perf_counter()
        await asyncio.sleep(PAUSE_S)
        late_s = max(0.0, time.perf_counter() - began - PAUSE_S)
        times.append(late_s + await read_s(reader, SHORT, parse_chat))
    await sending
    percentiles = statistics.quantiles(times, n=100)
    found = {"p50_ms": percentiles[49], "p99_ms": percentiles[98], "max_ms": max(times)}
    found |= {"long_ms": statistics.fmean(long_times)} if long_times else {}
    return {name: round(1000 * value, 2) for name, value in found.items()} | {"short": len(times)}


def main() -> None:
    """Print a line for each kind of body, and all of it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_bodies")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each kind (default: %(default)g)")
    seconds = parser.parse_args().seconds
    context = resolve_max_model_len(None, context_length(resolve_model(ModelConfig())))
    reader = new_reader(context)
    asyncio.run(read_s(reader, SHORT, parse_chat))
    results = {}
    for kind, long in {"alone": None, **long_bodies(context)}.items():
        results[kind] = asyncio.run(measure(reader, long, seconds))
        print(f"{kind:24}", results[kind], flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
