"""Reads Mooncake's traces: a JSON object a line, `hash_ids` naming the prompt's blocks.

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 2353, 2354]}

`timestamp` is in milliseconds. The last block may be partly filled. A line may have a `session_id` and a
`class`, texts that Mooncake's have not: requests of a class have figures of their own in the results.

Source: R. Qin et al., "Mooncake: A KVCache-centric Disaggregated Architecture for LLM Serving", 2024, and its
repository's `FAST25-release/traces`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from app.errors import ConfigError
from app.simulation.traces.request import SimulatedRequest


class _Line(msgspec.Struct, frozen=True):
    timestamp: Annotated[float, msgspec.Meta(ge=0)]
    input_length: Annotated[int, msgspec.Meta(ge=1)]
    output_length: Annotated[int, msgspec.Meta(ge=1)]
    hash_ids: list[Annotated[int, msgspec.Meta(ge=0, lt=2**32)]]
    session_id: str | None = None
    request_class: Annotated[str, msgspec.Meta(min_length=1)] | None = msgspec.field(
        name="class", default=None
    )


_decoder = msgspec.json.Decoder(_Line)


def read_trace(file: Path, block_size: int = 512) -> list[SimulatedRequest]:
    """The requests of `file` in its order, which is that of arrival.

    Args:
        file: JSON lines; empty ones are skipped.
        block_size: tokens of the blocks that `hash_ids` name.

    Raises:
        ConfigError: there is no such file, or a line of it is wrong: file, line, field and what is allowed.
    """
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"trace = {str(file)!r}: {error.strerror}") from None
    requests: list[SimulatedRequest] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                request = _request(line, block_size)
                _check_order(request, requests)
            except ValueError as error:  # msgspec's errors are ValueErrors too
                raise ConfigError(f"{file}, line {number}: {error}") from None
            requests.append(request)
    if not requests:
        raise ConfigError(f"trace = {str(file)!r}: no request in it")
    return requests


def _request(line: bytes, block_size: int) -> SimulatedRequest:
    fields = _decoder.decode(line)
    num_blocks = -(-fields.input_length // block_size)
    if len(fields.hash_ids) != num_blocks:
        raise ValueError(
            f"hash_ids has {len(fields.hash_ids)} blocks; input_length = {fields.input_length} is "
            f"{num_blocks} blocks of {block_size} tokens"
        )
    return SimulatedRequest(
        fields.timestamp / 1000,
        fields.input_length,
        fields.output_length,
        tuple(fields.hash_ids),
        fields.session_id,
        fields.request_class,
    )


def _check_order(request: SimulatedRequest, earlier: list[SimulatedRequest]) -> None:
    if earlier and request.arrival_s < earlier[-1].arrival_s:
        raise ValueError(
            f"timestamp = {request.arrival_s * 1000:g} is before the line above it, "
            f"{earlier[-1].arrival_s * 1000:g}; lines must be in the order of arrival"
        )
