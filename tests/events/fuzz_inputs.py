"""Endless inputs for the fuzzer, for every parser that reads what others wrote.

Each maker takes a `random.Random` and gives one input; the same state of it gives the same input. Most are
small and close to what is allowed; one in two thousand is as big as an attacker could make it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from app.events.batch_codec import encode_batch
from app.events.replay import SNAPSHOT
from app.events.schema import (
    MAX_EVENTS_PER_BATCH,
    MAX_FRAME_BYTES,
    MAX_HASHES_PER_EVENT,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
)

Made = TypeVar("Made")

DEEP = 100_000
RARE = 0.0005
GOLDEN = Path(__file__).parents[1] / "wire" / "golden_batches.jsonl"


def pick(rng: Random, choices: Sequence[Made]) -> Made:
    """As `rng.choice`, in a third of the time."""
    return choices[int(rng.random() * len(choices))]


# ---- event batches


def _own_batches() -> list[bytes]:
    stored = BlockStored([1, -2, 2**63 - 1], -(2**63), list(range(12)), 4, medium="GPU", cache_salt="salt")
    batches = [
        EventBatch(1.5, [AllBlocksCleared(), stored, BlockRemoved([1, 2], "GPU")], 3),
        EventBatch(0.0, [stored] * 8),
        EventBatch(float("inf"), []),
    ]
    return [encode_batch(batch, format) for batch in batches for format in ("map", "array")]


BATCHES = [bytes.fromhex(json.loads(line)["msgpack_hex"]) for line in GOLDEN.read_text().splitlines()]
BATCHES += _own_batches()

# Headers of str, bin, array, map and extension types with the largest lengths that there are.
HUGE_LENGTHS = [bytes([tag]) + b"\xff" * 4 for tag in (0xDB, 0xC6, 0xDD, 0xDF, 0xC9)]
HUGE_LENGTHS += [bytes([tag]) + b"\xff" * 2 for tag in (0xDA, 0xC5, 0xDC, 0xDE, 0xC8)]

_TS_AND_ONE_EVENT = b"\x93\x01\x91"
_REMOVED = b"\x92\xacBlockRemoved"
_UNKNOWN_KEY = b"\x83\xa4type\xacBlockRemoved\xacblock_hashes\x90\xa1x"
MONSTROUS_BATCHES = [
    prefix + nest * DEEP
    for prefix in (b"", b"\x93\x01", _TS_AND_ONE_EVENT, _TS_AND_ONE_EVENT + _REMOVED, _UNKNOWN_KEY)
    for nest in (b"\x91", b"\x81\xa1a", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff\xc0")
]
MONSTROUS_BATCHES += [
    _TS_AND_ONE_EVENT + _UNKNOWN_KEY + b"\x91" * DEEP + b"\xc0" * DEEP,
    b"\x93\x01\xdd" + (MAX_EVENTS_PER_BATCH + 1).to_bytes(4, "big") + b"\x91\xb0AllBlocksCleared" * 70_000,
    _TS_AND_ONE_EVENT + _REMOVED + b"\xdd" + (MAX_HASHES_PER_EVENT + 1).to_bytes(4, "big") + b"\x01" * 70_000,
    _TS_AND_ONE_EVENT + _REMOVED + b"\xdd" + MAX_HASHES_PER_EVENT.to_bytes(4, "big") + b"\x01" * 65_536,
    _TS_AND_ONE_EVENT
    + b"\x92\xdb\x00\x0f\x42\x40"
    + b"t" * 1_000_000
    + b"\x90",  # a tag of a million letters
    _TS_AND_ONE_EVENT + b"\x81\xa4type\xdb\x00\x0f\x42\x40" + b"t" * 1_000_000,
    bytes(MAX_FRAME_BYTES + 1),
]

_HASHES = MAX_HASHES_PER_EVENT - 1  # what fits the 16 bits of a shorter header
_STORED = b"\x84\xa4type\xabBlockStored\xacblock_hashes\x90\xaablock_size\x01\xa9token_ids"
_ONE_UNSIGNED = _REMOVED + b"\xdc\xff\xff" + b"\x01" * (_HASHES - 1) + b"\xcf" + b"\xff" * 8
_RAW_HASHES = _REMOVED + b"\xdc\xff\xff" + b"\xc4\x08abcdefgh" * _HASHES


def monstrous_batches() -> Iterator[bytes]:
    """Every monster once, and frames as full as they may be of what costs the most to read."""
    yield from MONSTROUS_BATCHES
    num_tokens = MAX_FRAME_BYTES - 100
    yield (
        _TS_AND_ONE_EVENT + _STORED + b"\xdd" + num_tokens.to_bytes(4, "big") + b"\x01" * num_tokens + b"\xc0"
    )
    for event in (_ONE_UNSIGNED, _RAW_HASHES):
        count = (MAX_FRAME_BYTES - 100) // len(event)
        yield b"\x93\x01\xdc" + count.to_bytes(2, "big") + event * count + b"\xc0"


def _noise(rng: Random) -> bytes:
    return rng.randbytes(int(rng.random() * 64))


def _noise_in_a_batch(rng: Random) -> bytes:
    return _TS_AND_ONE_EVENT + rng.randbytes(int(rng.random() * 48))


def _mutated(rng: Random) -> bytes:
    payload = bytearray(pick(rng, BATCHES))
    size = len(payload)
    for _ in range(1 + int(rng.random() * 4)):
        payload[int(rng.random() * size)] = int(rng.random() * 256)
    return bytes(payload)


def _truncated(rng: Random) -> bytes:
    payload = pick(rng, BATCHES)
    return payload[: int(rng.random() * len(payload))]


def _spliced(rng: Random) -> bytes:
    head, tail = pick(rng, BATCHES), pick(rng, BATCHES)
    return head[: int(rng.random() * len(head))] + tail[int(rng.random() * len(tail)) :]


def _huge_length(rng: Random) -> bytes:
    payload = pick(rng, BATCHES)
    cut = int(rng.random() * len(payload))
    return payload[:cut] + pick(rng, HUGE_LENGTHS) + payload[cut:]


_BATCH_MAKERS: list[Callable[[Random], bytes]] = [
    _noise,
    _noise_in_a_batch,
    _mutated,
    _mutated,
    _truncated,
    _spliced,
    _huge_length,
    lambda rng: pick(rng, BATCHES),
]


def batch_payload(rng: Random) -> bytes:
    """What may arrive as a batch of events."""
    return pick(rng, MONSTROUS_BATCHES) if rng.random() < RARE else pick(rng, _BATCH_MAKERS)(rng)


# ---- replay requests

_FRAMES = [b"", b"", bytes(8), b"\xff" * 8, SNAPSHOT, b"\0" * 7, b"\0" * 9, b"snapshot\0", b"Snapshot"]
MONSTROUS_REQUESTS = [[b""] * DEEP, [bytes(8)] * DEEP, [b"", bytes(10**6)], [b"", SNAPSHOT, bytes(10**6)]]


def request_frames(rng: Random) -> list[bytes]:
    """What may arrive as a request for a replay or a snapshot, the identity left out."""
    if rng.random() < RARE:
        return pick(rng, MONSTROUS_REQUESTS)
    if rng.random() < 0.1:
        return [b"", SNAPSHOT, b""] if rng.random() < 0.5 else [b"", rng.randbytes(8)]
    frames = [pick(rng, _FRAMES) for _ in range(int(rng.random() * 5))]
    if frames and rng.random() < 0.5:
        frames[int(rng.random() * len(frames))] = rng.randbytes(int(rng.random() * 12))
    return frames


# ---- values in JSON

_HOSTS = [
    "*",
    "0.0.0.0",
    "::",
    "[::]",
    "127.0.0.1",
    "[fe80::1%eth0]",
    "node-7",
    "a b",
    "[::",
    "1:2",
    "%",
    "é",
]
_LETTERS = 'abz09.:[]{}%*-/"\\,\0é\ud800\udfff\U0001f600 \n'
_NUMBERS = [0, -1, 1, 2, 1024, 1025, 5557, 65_535, 65_536, 10**6, 2**31, 2**63, 2**64, -(2**200), 10**5000]
_FLOATS = [0.0, 1.0, 5557.0, -0.5, 1e308, float("inf"), float("-inf"), float("nan")]


def _deep(kind: type) -> Any:
    value: Any = None
    for _ in range(DEEP):
        value = [value] if kind is list else {"publisher": value}
    return value


# Built once: none of the readers changes what it is given.
MONSTROUS_VALUES: list[Any] = [
    _deep(list),
    _deep(dict),
    "x" * 10**6,
    "\ud800" * 10**6,
    "[" + "1:" * 10**6 + "]",
    [0] * 10**6,
    10**100_000,
    dict.fromkeys(range(10**5)),
]


def _text(rng: Random) -> str:
    return "".join([pick(rng, _LETTERS) for _ in range(int(rng.random() * 8))])


_VALUE_MAKERS: list[Callable[[Random], Any]] = [
    lambda rng: pick(rng, _NUMBERS),
    lambda rng: int(rng.random() * 70_000),
    lambda rng: pick(rng, _HOSTS),
    lambda rng: pick(rng, _FLOATS),
    _text,
    lambda rng: pick(rng, (None, True, False)),
    lambda rng: [_scalar(rng), {_text(rng): _scalar(rng)}],
]


def _scalar(rng: Random) -> Any:
    return pick(rng, _VALUE_MAKERS[:-1])(rng)


def value(rng: Random) -> Any:
    """What a JSON parser may give."""
    return pick(rng, MONSTROUS_VALUES) if rng.random() < RARE else pick(rng, _VALUE_MAKERS)(rng)


DESCRIPTOR = {
    "publisher": "zmq",
    "endpoint_host": "*",
    "endpoint_port_base": 5557,
    "topic": "kv",
    "block_size": 64,
    "dp_size": 2,
    "replay_endpoint_port_base": 5600,
    "load_endpoint_port_base": 5559,
    "load_topic": "load",
    "curve_public_key": "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID",
}
LISTED = {
    "rank": 0,
    "state": "publishing",
    "host": "10.0.0.7",
    "event_port": 5557,
    "replay_port": 5600,
    "load_port": 5559,
    "topic": "kv",
    "load_topic": "load",
    "block_size": 64,
    "curve_public_key": None,
}


def descriptor(rng: Random) -> Any:
    """What may stand at `kv_events`: mostly a descriptor with some values changed and some left out."""
    return _mostly(rng, DESCRIPTOR)


def publishers(rng: Random) -> Any:
    """What may stand at `publishers`: mostly a list of such entries."""
    if rng.random() < 0.1:
        return value(rng)
    return [_mostly(rng, LISTED) for _ in range(1 + int(rng.random() * 3))]


def _mostly(rng: Random, model: dict[str, Any]) -> Any:
    if rng.random() < 0.1:
        return value(rng)
    made: dict[str, Any] = dict(model)
    keys = [*model, "unknown"]
    for _ in range(1 + int(rng.random() * 3)):
        key = pick(rng, keys)
        if rng.random() < 0.2:
            made.pop(key, None)
        else:
            made[key] = value(rng)
    return made


# ---- the text of `kv_events_config`

CONFIG = {
    "publisher": "zmq",
    "endpoint": "tcp://*:5557",
    "replay_endpoint": "tcp://*:5657",
    "topic": "kv",
    "hwm": 1000,
    "load_topic": "load",
    "bind": "auto",
}
CONFIG_TEXT = json.dumps(CONFIG)
_CONFIG_KEYS = [
    *CONFIG,
    "curve",
    "buffer_steps",
    "enable_kv_cache_events",
    "format",
    "load_publish_endpoint",
    "load_reports",
    "unknown",
]
MONSTROUS_CONFIGS = [
    "[" * DEEP,
    '{"a":' * DEEP,
    "9" * DEEP,
    f'{{"hwm": {"9" * 4000}}}',
    '"' + "x" * 10**6 + '"',
]


def _mutated_text(rng: Random) -> str:
    cut = int(rng.random() * len(CONFIG_TEXT))
    return CONFIG_TEXT[:cut] + _text(rng) + CONFIG_TEXT[cut + int(rng.random() * 8) :]


def _config_of_values(rng: Random) -> str:
    made: dict[str, Any] = dict(CONFIG)
    for _ in range(1 + int(rng.random() * 2)):
        made[_text(rng) if rng.random() < 0.1 else pick(rng, _CONFIG_KEYS)] = _config_value(rng)
    return json.dumps(made, ensure_ascii=rng.random() < 0.5)


def _config_value(rng: Random) -> Any:
    if rng.random() < 0.4:
        scheme = pick(rng, ("tcp://", "tcp:", "ipc://", "inproc://", "udp://", ""))
        return f"{scheme}{pick(rng, _HOSTS)}{pick(rng, (':', '', '::'))}{pick(rng, _NUMBERS[:-1])}"
    made = _scalar(rng)
    return made if made != _NUMBERS[-1] else -made % 7  # Python can't write it


def config_text(rng: Random) -> str:
    """What may stand at `kv_events_config`."""
    if rng.random() < RARE:
        return pick(rng, MONSTROUS_CONFIGS)
    kind = rng.random()
    if kind < 0.3:
        return _mutated_text(rng)
    return _text(rng) if kind < 0.35 else _config_of_values(rng)
