"""`least_loaded` and `round_robin`: what each goes by, and what it ignores."""

from __future__ import annotations

from tests.support.routing.views import choose, new_view


def test_least_loaded_is_blind_to_prefixes() -> None:
    views = [
        new_view(0, num_requests=2, cached_tokens=900),
        new_view(1, num_requests=1),
        new_view(2, num_requests=1),
    ]
    assert choose("least_loaded", views).rank == 1
    assert choose("least_loaded", [views[2], new_view(1, num_requests=1, assigned_tokens=5)]).rank == 2


def test_round_robin_takes_turns_whatever_the_load() -> None:
    assigned = [0, 0, 0]
    turns = []
    for _ in range(6):
        views = [
            new_view(0, num_requests=9, waiting_tokens=9000, assigned_requests=assigned[0]),
            new_view(1, assigned_requests=assigned[1]),
            new_view(2, assigned_requests=assigned[2]),
        ]
        rank = choose("round_robin", views, 10).rank
        turns.append(rank)
        assigned[rank] += 1
    assert turns == [0, 1, 2, 0, 1, 2]
