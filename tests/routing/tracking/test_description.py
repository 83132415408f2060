"""A rank as routers see it while a redeploy changes the model."""

from __future__ import annotations

from dataclasses import replace

from tests.support.rank_info import rank_info


def test_a_rank_of_another_model_is_unavailable_to_a_router_and_says_why() -> None:
    rank = replace(rank_info(0), model="old")
    assert rank.seen_from("old") is rank
    assert rank.seen_from("new").unavailable == "it serves the model old; this router's is new"


def test_what_a_rank_says_of_itself_comes_first() -> None:
    rank = replace(rank_info(0), model="old", unavailable="the worker is down")
    assert rank.seen_from("new") is rank
