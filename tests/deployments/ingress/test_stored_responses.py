"""The store of responses: bounded, each owner's own, the last used stay."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from app.deployments.ingress.stored_responses import StoredResponses
from app.errors import InvalidRequestError, UnknownResponseError
from app.settings.ingress import IngressConfig

Json = dict[str, Any]


def response(name: str, previous: str | None = None, text: str = "said") -> Json:
    return {"id": name, "previous_response_id": previous, "output": [{"id": f"out_{name}", "text": text}]}


def asked(name: str) -> list[Json]:
    return [{"id": f"in_{name}"}]


def test_a_conversation_is_the_items_of_all_its_responses() -> None:
    own = StoredResponses(10, 10_000).of(None)
    for name, previous in (("a", None), ("b", "a"), ("c", "b"), ("d", "a")):
        own.put(response(name, previous), asked(name))
    ids = [item["id"] for item in own.conversation("c")]
    assert ids == ["in_a", "out_a", "in_b", "out_b", "in_c", "out_c"]
    assert [item["id"] for item in own.conversation("d")] == ["in_a", "out_a", "in_d", "out_d"]
    assert own.get("b") == (response("b", "a"), asked("b"))
    assert (own.item("in_b"), own.item("out_b"), own.item("x")) == (
        *asked("b"),
        response("b")["output"][0],
        None,
    )

    own.delete("a")
    with pytest.raises(InvalidRequestError, match="'c': a, from which it goes on, isn't stored") as caught:
        own.conversation("c")
    assert caught.value.code == "previous_response_not_found"
    with pytest.raises(UnknownResponseError):
        own.delete("a")
    assert own.item("in_a") is None


@pytest.mark.parametrize("others", [None, "two"])
def test_nobody_sees_another_owners(others: str | None) -> None:
    stored = StoredResponses(10, 10_000)
    stored.of("one").put(response("a"), asked("a"))
    other = stored.of(others)
    for ask in (other.get, other.delete, other.conversation):
        with pytest.raises((UnknownResponseError, InvalidRequestError), match="isn't stored here"):
            ask("a")
    assert other.item("in_a") is None
    assert stored.of("one").get("a") == (response("a"), asked("a"))


def test_the_last_used_stay() -> None:
    own = StoredResponses(3, 10_000).of(None)
    for name in ("a", "b", "c"):
        own.put(response(name), asked(name))
    own.conversation("a")
    own.put(response("d"), asked("d"))
    assert own.get("a")
    with pytest.raises(UnknownResponseError, match="'b'"):
        own.get("b")


def test_bytes_are_bounded() -> None:
    rng = random.Random(1)
    limit = 3000
    own = StoredResponses(100, limit).of(None)
    kept: dict[str, int] = {}
    for place in range(200):
        name = f"resp_{place}"
        one = response(name, text="x" * rng.randrange(1200))
        own.put(one, asked(name))
        kept[name] = len(msgspec.json.encode(one)) + len(msgspec.json.encode(asked(name)))
        while sum(kept.values()) > limit:
            del kept[next(iter(kept))]
        for each in list(kept):
            assert own.get(each)
        if place:
            gone = f"resp_{place - len(kept)}"
            with pytest.raises(UnknownResponseError):
                own.get(gone)


def test_one_that_is_larger_than_the_store_is_not_kept() -> None:
    own = StoredResponses(10, 500).of(None)
    own.put(response("a"), asked("a"))
    own.put(response("b", text="x" * 1000), asked("b"))
    with pytest.raises(UnknownResponseError):
        own.get("b")


@pytest.mark.parametrize(
    ("changes", "stores"), [({}, True), ({"num_ingresses": 2}, False), ({"stored_responses": 0}, False)]
)
def test_responses_are_stored_where_there_is_one_ingress(changes: Json, stores: bool) -> None:
    config = IngressConfig.model_validate(changes)
    assert (StoredResponses.by(config) is not None) == stores
