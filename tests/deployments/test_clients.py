"""The clients' calls and the deployments' own methods are the same: mypy compares them, on this module."""

from __future__ import annotations

import inspect

import pytest

from app.deployments.rank.dp_rank import DPRank
from app.deployments.rank_client import RankMethods
from app.deployments.router.router import Router
from app.deployments.router_client import RouterMethods

ROUTER_METHODS: type[RouterMethods] = Router
RANK_METHODS: type[RankMethods] = DPRank


def methods_of(protocol: type) -> list[str]:
    return [name for name, value in vars(protocol).items() if inspect.isfunction(value) and name[0] != "_"]


@pytest.mark.parametrize(("protocol", "deployment"), [(RouterMethods, Router), (RankMethods, DPRank)])
def test_a_client_calls_its_deployments_own_methods(protocol: type, deployment: type) -> None:
    names = methods_of(protocol)
    assert names
    for name in names:
        called, own = (inspect.signature(vars(each)[name]) for each in (protocol, deployment))
        assert called.parameters.keys() == own.parameters.keys(), name
