"""Calls native code that recurses as deeply as its input is nested, which overflows usual stacks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")

STACK_BYTES = 256 * 2**20
"""Address space, not memory: the kernel backs only the pages that a call reaches."""

_starting = threading.Lock()


def call_on_deep_stack(function: Callable[[], Result]) -> Result:
    """What `function` returns or raises on a thread of its own with `STACK_BYTES` of stack."""
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="deep-stack", daemon=True)
    # The size is a setting of the process, and applies to the next thread that starts.
    with _starting:
        usual = threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(usual)
    return outcome.result()
