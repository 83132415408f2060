"""The registry of policies: what holds for all of them, what users read of them, and unknown names."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ray.serve.exceptions import RayServeException

from app.build import build_app
from app.check import IMPORT_PATH, check
from app.config import load_config
from app.errors import ConfigError
from app.routing.core import RoutingCore
from app.routing.policies.base import PolicyInput, PolicySpec
from app.routing.policies.registry import POLICIES, find_policy
from app.routing.rank_view import RankView, RankViews
from app.settings.routing import RoutingConfig
from tests.support.routing.views import VIEWS

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"
DEFAULT = RoutingConfig().policy
INPUTS = st.builds(
    PolicyInput,
    num_tokens=st.integers(1000, 10**6),
    mean_uncached_tokens=st.none() | st.floats(1, 1e6),
    session_id=st.none() | st.text(max_size=8),
    draw=st.floats(0, 1, exclude_max=True),
)


@given(views=VIEWS, policy=st.sampled_from(sorted(POLICIES)), policy_input=INPUTS)
def test_every_policy_chooses_a_cheapest_rank_whatever_the_order(
    views: list[RankView], policy: str, policy_input: PolicyInput
) -> None:
    choice = POLICIES[policy].choose(RankViews.of(views), policy_input)
    cost = dict(zip((each.rank for each in views), choice.costs, strict=True))
    assert cost[choice.rank] <= min(choice.costs) * (1 + POLICIES[choice.deferred_to or policy].near_tie)
    held = {each.rank: each.cached_tokens for each in views}
    assert choice.cached_tokens == held[choice.rank]
    assert choice.predicted_ttft_s > 0


def test_only_predictions_are_so_imprecise_that_near_costs_are_equal() -> None:
    assert {name: spec.near_tie for name, spec in POLICIES.items() if spec.near_tie} == {
        "predicted_ttft": 0.005
    }


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_can_be_configured(name: str) -> None:
    args = {"routing": {"policy": name}}
    config = load_config(args)
    assert config.routing.policy == name
    assert find_policy(name, field="policy") is POLICIES[name]
    assert POLICIES[name].name == name
    assert build_app(args) is not None
    RoutingCore(config.routing, dp_size=2)


def check_config_file(args: dict[str, object], folder: Path) -> None:
    """With an HTTP port that is taken, which the check would find next."""
    file = folder / "serve_config.yaml"
    application = {"name": "kvbeacon", "import_path": IMPORT_PATH, "args": args}
    with socket.create_server(("127.0.0.1", 0)) as server:
        http = {"host": "127.0.0.1", "port": server.getsockname()[1]}
        file.write_text(yaml.safe_dump({"http_options": http, "applications": [application]}))
        check(file)


Start = Callable[[dict[str, object], Path], object]
START = pytest.mark.parametrize(
    "start", [lambda args, _: build_app(args), check_config_file], ids=["app.build", "app.check"]
)
ALLOWED = (
    "Input should be 'predicted_ttft', 'least_loaded', 'round_robin', 'random', 'power_of_two', "
    "'prefix_affinity' or 'session'"
)


@START
@pytest.mark.parametrize("given", ["fastest", "", 3, None, ["random"]])
def test_an_unknown_policy_is_refused_before_anything_starts(
    start: Start, given: object, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, RayServeException)) as caught:
        start({"routing": {"policy": given}}, tmp_path)
    assert str(caught.value) == f"args.routing.policy = {given!r}: {ALLOWED}"


@START
def test_an_unknown_policy_is_named_together_with_all_other_faults(start: Start, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, RayServeException)) as caught:
        start({"dp_size": 0, "routing": {"policy": "fastest", "num_routers": 0}, "port": 1}, tmp_path)
    faults = str(caught.value).split("; ")
    assert faults[1] == f"args.routing.policy = 'fastest': {ALLOWED}"
    assert [fault.split(" = ")[0].split(":")[0] for fault in faults[:4]] == [
        "args.dp_size",
        "args.routing.policy",
        "args.routing.num_routers",
        "args.port",
    ]


def test_a_core_with_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        RoutingCore(RoutingConfig(policy="fastest"), dp_size=2)
    assert str(caught.value) == f"routing.policy = 'fastest': {ALLOWED}"


def documented_policies() -> dict[str, str]:
    """The table of policies in the operators' manual: what each does, without links, by name."""
    _, section = OPERATIONS.read_text().split("\n## Policies\n")
    rows = re.findall(
        r"^\| `(\w+)`( \(default\))? \| (.*?) \| .* \|$", section.split("\n## ")[0], re.MULTILINE
    )
    assert [name for name, default, _ in rows if default] == [DEFAULT]
    return {name: re.sub(r" \(\[.*?\]\(.*?\)\)", "", does).replace("`", "") for name, _, does in rows}


def test_the_manual_says_of_every_policy_what_the_policy_says_of_itself() -> None:
    assert documented_policies() == {name: spec.description for name, spec in POLICIES.items()}


@pytest.mark.parametrize("spec", POLICIES.values(), ids=POLICIES)
def test_a_description_is_one_line(spec: PolicySpec) -> None:
    assert spec.description
    assert "\n" not in spec.description
