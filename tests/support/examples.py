"""How many random examples a property test runs; none of them is timed, since a machine may be busy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("long", max_examples=5000, deadline=None)
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

_DEFAULT = settings.get_profile("default").max_examples


def examples(count: int) -> int:
    """`count`, or as many times more as the chosen profile has more than the default one."""
    return count * settings().max_examples // _DEFAULT
