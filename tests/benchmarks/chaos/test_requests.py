"""The requests of the traffic: all of them valid, and a seed's always the same."""

from __future__ import annotations

import json

from app.api.bodies import parse_any
from benchmarks.chaos.requests import Ask, Asks, comparable_asks


def check(ask: Ask) -> None:
    body = parse_any(json.dumps(ask.payload).encode())
    assert body.stream == ask.streams
    params = body.engine_params()
    if ask.comparable:
        assert params.temperature == 0 or params.seed is not None


def test_every_request_is_valid_and_comparable_ones_have_one_answer() -> None:
    comparable = comparable_asks(1, 3)
    assert len({ask.name for ask in comparable}) == len(comparable)
    asks = Asks(1, comparable)
    drawn = [asks.draw() for _ in range(500)]
    for ask in [*comparable, *drawn]:
        check(ask)
    assert {ask.leaves for ask in drawn} == {None, "at_once", "waiting", "streaming"}
    assert {ask.api for ask in drawn} == {"chat", "text", "native"}
    assert any(ask.comparable for ask in drawn)
    assert not any(ask.comparable and ask.leaves for ask in drawn)


def test_a_seed_has_one_sequence_of_requests() -> None:
    one, same = (Asks(5, comparable_asks(5, 2)) for _ in range(2))
    other = Asks(6, comparable_asks(6, 2))
    assert [one.draw() for _ in range(50)] == [same.draw() for _ in range(50)]
    assert [one.draw() for _ in range(50)] != [other.draw() for _ in range(50)]
