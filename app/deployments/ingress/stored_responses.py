"""Responses that a later request can go on from: in memory, bounded in number and bytes, the last used stay.

Each is kept with its own input alone, and names the one before it:

    resp_1  ◀── resp_2  ◀── resp_3        the conversation of resp_3 is the items of all three

Every method may be called from several threads at once: long bodies are read in threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from app.deployments.messages import Json
from app.errors import InvalidRequestError, UnknownResponseError, shown
from app.settings.ingress import IngressConfig


@dataclass(frozen=True)
class _Stored:
    """`item_ids`: the ids of its items, the input's too."""

    owner: str | None
    response: bytes
    input: bytes
    previous_id: str | None
    item_ids: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        return len(self.response) + len(self.input)

    def items(self) -> list[Json]:
        items: list[Json] = msgspec.json.decode(self.input)
        items += msgspec.json.decode(self.response)["output"]
        return items


class StoredResponses:
    """All that are stored.

    Args:
        max_number: of responses.
        max_bytes: of their JSON.
    """

    def __init__(self, max_number: int, max_bytes: int) -> None:
        self._max_number = max_number
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._stored: OrderedDict[str, _Stored] = OrderedDict()
        """The last used at the end."""
        self._response_of: dict[str, str] = {}
        """By an item's id, the response that has it."""
        self._num_bytes = 0

    @classmethod
    def by(cls, config: IngressConfig) -> StoredResponses | None:
        """The store that the config wants; None for none, and where several ingresses would have one each."""
        if config.num_ingresses > 1 or config.stored_responses == 0:
            return None
        return cls(config.stored_responses, config.stored_responses_bytes)

    def of(self, owner: str | None) -> OwnResponses:
        """What one tenant may see of it; None: there are no tenants."""
        return OwnResponses(self, owner)

    def put(self, owner: str | None, response: Json, items: Sequence[Json]) -> None:
        """Store a response with its own input's items. One that is larger than the whole store is not."""
        ids = tuple(item["id"] for item in (*items, *response["output"]))
        previous_id = response["previous_response_id"]
        encoded = (msgspec.json.encode(response), msgspec.json.encode(items))
        stored = _Stored(owner, *encoded, previous_id, ids)
        with self._lock:
            self._stored[response["id"]] = stored
            self._num_bytes += stored.num_bytes
            self._response_of |= dict.fromkeys(ids, response["id"])
            while len(self._stored) > self._max_number or self._num_bytes > self._max_bytes:
                self._drop(next(iter(self._stored)))

    def get(self, owner: str | None, response_id: str) -> tuple[Json, list[Json]] | None:
        """A response and its own input's items; None if this owner has none with this id."""
        with self._lock:
            stored = self._owned(owner, response_id)
        if stored is None:
            return None
        return msgspec.json.decode(stored.response), msgspec.json.decode(stored.input)

    def delete(self, owner: str | None, response_id: str) -> bool:
        """Forget a response; returns whether this owner had it."""
        with self._lock:
            is_there = self._owned(owner, response_id) is not None
            if is_there:
                self._drop(response_id)
            return is_there

    def chain(self, owner: str | None, response_id: str) -> list[Json]:
        """The items of a response and of all before it.

        Raises:
            KeyError: it, or one before it, isn't stored, with its id.
        """
        found: list[_Stored] = []
        with self._lock:
            next_id: str | None = response_id
            while next_id is not None:
                stored = self._owned(owner, next_id)
                if stored is None:
                    raise KeyError(next_id)
                found.append(stored)
                next_id = stored.previous_id
        return [item for stored in reversed(found) for item in stored.items()]

    def item(self, owner: str | None, item_id: str) -> Json | None:
        """The item with this id, if this owner has it."""
        with self._lock:
            response_id = self._response_of.get(item_id)
            stored = None if response_id is None else self._owned(owner, response_id)
        items = [] if stored is None else stored.items()
        return next((item for item in items if item["id"] == item_id), None)

    def _owned(self, owner: str | None, response_id: str) -> _Stored | None:
        stored = self._stored.get(response_id)
        if stored is None or stored.owner != owner:
            return None
        self._stored.move_to_end(response_id)
        return stored

    def _drop(self, response_id: str) -> None:
        stored = self._stored.pop(response_id)
        self._num_bytes -= stored.num_bytes
        for item_id in stored.item_ids:
            if self._response_of.get(item_id) == response_id:
                del self._response_of[item_id]


class OwnResponses:
    """One owner's: see `EarlierResponses` of the API, and what its routes show."""

    def __init__(self, stored: StoredResponses, owner: str | None) -> None:
        self._stored = stored
        self._owner = owner

    def put(self, response: Json, items: Sequence[Json]) -> None:
        """See `StoredResponses.put`."""
        self._stored.put(self._owner, response, items)

    def conversation(self, response_id: str) -> list[Json]:
        """See `EarlierResponses`."""
        try:
            return self._stored.chain(self._owner, response_id)
        except KeyError as error:
            missing = error.args[0]
        what = "it" if missing == response_id else f"{missing}, from which it goes on,"
        raise InvalidRequestError(
            f"previous_response_id = {shown(response_id)}: {what} isn't stored here, or isn't any more",
            param="previous_response_id",
            code="previous_response_not_found",
        )

    def item(self, item_id: str) -> Json | None:
        """See `EarlierResponses`."""
        return self._stored.item(self._owner, item_id)

    def get(self, response_id: str) -> tuple[Json, list[Json]]:
        """A response and its own input's items. Raises `UnknownResponseError`."""
        found = self._stored.get(self._owner, response_id)
        if found is None:
            raise UnknownResponseError(response_id)
        return found

    def delete(self, response_id: str) -> None:
        """Forget a response. Raises `UnknownResponseError`."""
        if not self._stored.delete(self._owner, response_id):
            raise UnknownResponseError(response_id)
