from __future__ import annotations

import threading

import pytest

from app.text.deep_stack import call_on_deep_stack


def test_it_returns_and_raises_what_the_function_does() -> None:
    assert call_on_deep_stack(lambda: threading.current_thread().name) == "deep-stack"
    with pytest.raises(ZeroDivisionError):
        call_on_deep_stack(lambda: 1 // 0)


def test_other_threads_keep_their_usual_stacks() -> None:
    usual = threading.stack_size()
    call_on_deep_stack(lambda: None)
    assert threading.stack_size() == usual
