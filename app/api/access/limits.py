"""What one key may ask for, and how much of it is used: the share of one ingress.

Each of n ingresses grants an n-th of every limit by itself: none has to ask another one. Requests and tokens
are counted in buckets that fill up evenly (https://en.wikipedia.org/wiki/Token_bucket) and hold a minute's
share, at least one request. Of concurrent requests the share is rounded down, and is at least one.

Tokens are known only while they are used. So a request is let in while the bucket has any, its prompt is
taken out whole and its output as it comes, and what is then owed is waited for by the next one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from pydantic import Field

from app.errors import RateLimitError
from app.settings.base import PositiveInt, Settings

MAX_LIMIT = 10**12
CONCURRENT_RETRY_S = 1
Clock = Callable[[], float]


class KeyLimits(Settings):
    """What one key may ask for in the whole deployment; null: any number."""

    requests_per_minute: PositiveInt | None = Field(
        None, le=MAX_LIMIT, description="Requests with a body that begin in a minute."
    )
    concurrent_requests: PositiveInt | None = Field(
        None, le=MAX_LIMIT, description="Requests with a body that are being answered."
    )
    tokens_per_minute: PositiveInt | None = Field(
        None, le=MAX_LIMIT, description="Tokens of prompts, cached or not, and of outputs together."
    )


class Bucket:
    """So much for each minute, in even flow.

    Args:
        per_minute: what comes in.
        clock: seconds.
    """

    def __init__(self, per_minute: float, clock: Clock) -> None:
        self._per_s = per_minute / 60
        self._capacity = max(1.0, per_minute)
        self._clock = clock
        self._level = self._capacity
        self._seen_at = clock()

    def wait_s(self, amount: float) -> float:
        """Seconds until it holds `amount`; 0: it does."""
        now = self._clock()
        self._level = min(self._capacity, self._level + (now - self._seen_at) * self._per_s)
        self._seen_at = now
        return max(0.0, (amount - self._level) / self._per_s)

    def take(self, amount: float) -> None:
        """Take so much out, more than there is too."""
        self._level -= amount


class Allowance:
    """How much of its limits one key has used at this ingress.

    Args:
        name: the key's, for errors.
        limits: of the whole deployment.
        num_ingresses: that share them.
        clock: seconds.
    """

    def __init__(
        self, name: str, limits: KeyLimits, num_ingresses: int, clock: Clock = time.monotonic
    ) -> None:
        self.limits = limits
        self._name = name
        self._share = f" ({num_ingresses} ingresses grant an equal share each)" if num_ingresses > 1 else ""
        self._requests = _bucket(limits.requests_per_minute, num_ingresses, clock)
        self._tokens = _bucket(limits.tokens_per_minute, num_ingresses, clock)
        places = limits.concurrent_requests
        self._places = math.inf if places is None else max(1, places // num_ingresses)
        self._num_running = 0

    def enter(self) -> None:
        """Let a request in; `leave` must follow.

        Raises:
            RateLimitError: a limit is reached. Nothing was counted then.
        """
        if self._num_running >= self._places:
            raise self._reached("concurrent_requests", "that many are being answered", CONCURRENT_RETRY_S)
        self.check_tokens()
        if self._requests is not None:
            wait_s = self._requests.wait_s(1)
            if wait_s:
                raise self._reached("requests_per_minute", "they are used up", wait_s)
            self._requests.take(1)
        self._num_running += 1

    def leave(self) -> None:
        """A request that was let in has ended."""
        self._num_running -= 1

    def check_tokens(self) -> None:
        """Whether there are any left.

        Raises:
            RateLimitError: there are none.
        """
        wait_s = 0.0 if self._tokens is None else self._tokens.wait_s(1)
        if wait_s:
            raise self._reached("tokens_per_minute", "they are used up", wait_s)

    def charge(self, num_tokens: int) -> None:
        """So many tokens were used."""
        if self._tokens is not None:
            self._tokens.take(num_tokens)

    def _reached(self, limit: str, how: str, wait_s: float) -> RateLimitError:
        value = getattr(self.limits, limit)
        message = f"key {self._name!r}: {limit} = {value}{self._share}, and {how}"
        return RateLimitError(message, retry_after_s=math.ceil(wait_s))


def _bucket(per_minute: int | None, num_ingresses: int, clock: Clock) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute / num_ingresses, clock)
