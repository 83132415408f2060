"""How many random examples a property test runs."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("long", max_examples=5000)

_DEFAULT = settings.get_profile("default").max_examples


def examples(count: int) -> int:
    """`count`, or as many times more as the chosen profile has more than the default one."""
    return count * settings().max_examples // _DEFAULT
