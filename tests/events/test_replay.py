"""Requests of the recovery socket."""

from __future__ import annotations

import pytest

from app.errors import WireError
from app.events.replay import parse_request


def test_the_error_of_a_request_of_many_frames_is_short() -> None:
    with pytest.raises(WireError, match="request of 100000 frames, the first of") as caught:
        parse_request([b""] * 100_000)
    assert len(str(caught.value)) < 200
