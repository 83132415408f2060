"""How a replica that works on requests stands, as one router knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["usable", "unavailable", "gone"]


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether requests may go on at a replica.

    Attributes:
        state: `usable`: it takes requests. `unavailable`: it is there, but takes none now. `gone`: it is not
            among the replicas that Ray has, or is taken for dead.
        reason: why it is not usable, for people to read; empty when it is.
    """

    state: State
    reason: str = ""


USABLE = Standing("usable")
