"""How a replica that works on requests stands, as one router knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["usable", "unavailable", "gone"]


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether requests may go on at a replica.

    Attributes:
        state: `usable`: it takes requests, as far as is known. `unavailable`: it is there, but takes none
            now, by its own word or because it doesn't answer. `gone`: Ray no longer has it, so it takes no
            new ones: it has died, or is being stopped and may still go on with those that it has.
        reason: why it is not usable, for people to read; empty when it is.
    """

    state: State
    reason: str = ""


USABLE = Standing("usable")
