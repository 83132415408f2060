"""One request on its way through an ingress: what it holds of its key's limits, and how long it may stay.

arrives ──▶ body ──▶ prompt ──▶ a rank is chosen ──▶ first token ──▶ … ──▶ end
                 ├── waits ─────────────────────────┤
├────────────── has a place among its key's requests ─────────────────────┤
"""

from __future__ import annotations

from starlette.requests import Request

from app.api.access.limits import Allowance
from app.deployments.ingress.dispatch.deadline import Deadline
from app.errors import QueueFullError

VISIT = "kvbeacon.visit"
"""Where a request's scope has it."""


class WaitingRoom:
    """Requests that have no output yet: an ingress's share of those of the deployment.

    Args:
        most: of the deployment.
        num_ingresses: that share them.
    """

    def __init__(self, most: int, num_ingresses: int) -> None:
        self._most = max(1, most // num_ingresses)
        self._given = f"ingress.max_waiting_requests = {most}"
        self._share = f", {self._most} at each of {num_ingresses} ingresses" if num_ingresses > 1 else ""
        self._num_waiting = 0

    def enter(self) -> None:
        """One more waits; `leave` must follow. Raises `QueueFullError` when there is no room."""
        self.check()
        self._num_waiting += 1

    def check(self) -> None:
        """Raises `QueueFullError` when there is no room."""
        if self._num_waiting >= self._most:
            raise QueueFullError(
                f"{self._given}{self._share}: that many wait; come again in 1 s", retry_after_s=1
            )

    def leave(self) -> None:
        """One has its output, or is gone."""
        self._num_waiting -= 1


class Visit:
    """What one request holds; `leave` gives all of it back, at whatever point.

    Args:
        allowance: its key's; None: there are no limits.
        waiting: where it waits; None: it asks for no output.
        deadline: of the answer; None: any time.

    Attributes:
        deadline: as given.

    Raises:
        RateLimitError, QueueFullError: there is no room for it.
    """

    def __init__(
        self,
        allowance: Allowance | None = None,
        waiting: WaitingRoom | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        self.deadline = deadline
        self._allowance = allowance
        self._waiting = waiting
        self._is_waiting = False
        if waiting is not None:
            waiting.check()
        if allowance is not None:
            allowance.enter()

    def begin_wait(self) -> None:
        """Its body is there. Raises `QueueFullError` when there is no room for it any more."""
        if self._waiting is not None and not self._is_waiting:
            self._waiting.enter()
            self._is_waiting = True

    def charge_prompt(self, num_tokens: int) -> None:
        """The prompt has so many tokens. Raises `RateLimitError` if its key has none left."""
        if self._allowance is not None:
            self._allowance.check_tokens()
            self._allowance.charge(num_tokens)

    def charge_output(self, num_tokens: int) -> None:
        """So many tokens came."""
        if self._allowance is not None:
            self._allowance.charge(num_tokens)

    def begin_output(self) -> None:
        """It waits no longer."""
        if self._waiting is not None and self._is_waiting:
            self._waiting.leave()
            self._is_waiting = False

    def leave(self) -> None:
        """It has ended. Called once."""
        self.begin_output()
        if self._allowance is not None:
            self._allowance.leave()


def visit_of(request: Request) -> Visit:
    """The request's, that `Gate` has let in; one that holds nothing where there is no gate."""
    visit: Visit | None = request.scope.get(VISIT)
    return Visit() if visit is None else visit
