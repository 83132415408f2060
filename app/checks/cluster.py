"""Asks the nodes of a Ray cluster whether ranks, routers and ingresses could start on them.

Which node gets a replica is Ray's choice, so each that can hold one must have what it needs. The running
service holds CPUs and GPUs: nodes are asked by tasks that need none.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from app.checks.machine import check_for_control, check_for_rank, check_python
from app.checks.plan import CONTROL_CPUS, Plan
from app.deployments.logs import log_with_ray
from app.errors import ConfigError, InsufficientMemoryError, KvbeaconError
from app.events.ports import is_loopback

logger = logging.getLogger("ray.serve")

ANSWER_WITHIN_S = 600.0
"""Of each round of questions: a known model may have to be fetched first."""

Question = Callable[[Plan], int | None]


@dataclass(frozen=True, slots=True)
class _Node:
    """One node that lives: Ray's id, its address, what it has in all."""

    id: str
    address: str
    resources: Mapping[str, float] = field(hash=False)

    def holds(self, needs: Mapping[str, float]) -> bool:
        """Whether it could, if nothing else ran there."""
        return self.places(needs) >= 1

    def places(self, needs: Mapping[str, float]) -> float:
        """For how many of these it has room, if nothing else ran there; without needs for any number."""
        room = [self.resources.get(name, 0.0) // amount for name, amount in needs.items() if amount > 0]
        return min(room, default=math.inf)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a node says: what is wrong there, or how many ranks its memory holds, where that is known."""

    fault: KvbeaconError | None = None
    num_ranks: int | None = None


def check_cluster(plan: Plan) -> None:
    """Refuse what ranks, routers or ingresses would refuse when they start. Without a cluster, ask no node.

    What the service that is to be replaced has, its ports and its share of the memory, isn't looked at.

    Raises:
        ModelError, ConfigError: what one of them would raise, and on which node.
    """
    if not ray.is_initialized():
        return
    log_with_ray()
    nodes = _living_nodes()
    for_ranks = [node for node in nodes if any(node.holds(needs) for needs in plan.placement.bundles)]
    for_control = [node for node in nodes if node.holds({"CPU": CONTROL_CPUS})]
    for warning in _warnings(plan, for_ranks, for_control):
        logger.warning("%s", warning)
    if plan.config.resources.python is not None:
        _ask(check_python, plan, for_ranks)
    fitting = _ask(check_for_rank, plan, for_ranks, plan.placement.runtime_env)
    _ask(check_for_control, plan, for_control)
    _check_memory(plan, fitting, _num_placed(plan, for_ranks))


def _living_nodes() -> list[_Node]:
    return [
        _Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"])
        for node in ray.nodes()
        if node["Alive"]
    ]


def _warnings(plan: Plan, for_ranks: Sequence[_Node], for_control: Sequence[_Node]) -> Iterator[str]:
    """What won't work on the nodes that there are. No refusals: a cluster can grow on demand."""
    config, routing, ingress = plan.config, plan.config.routing, plan.config.ingress
    needs = " or ".join(str(dict(bundle)) for bundle in plan.placement.bundles)
    if not for_ranks:
        yield f"no node has {needs}, which a rank needs: ranks wait for one, and nothing of them is checked"
    for name, per_node, number, nodes in (
        (
            "resources.max_ranks_per_node",
            config.resources.max_ranks_per_node,
            config.expected_dp_size,
            for_ranks,
        ),
        ("routing.max_routers_per_node", routing.max_routers_per_node, routing.num_routers, for_control),
        (
            "ingress.max_ingresses_per_node",
            ingress.max_ingresses_per_node,
            ingress.num_ingresses,
            for_control,
        ),
    ):
        if per_node is not None and (most := per_node * len(nodes)) < number:
            yield f"{name} = {per_node}: {number} are wanted; those beyond {most} wait for more nodes"
    host = plan.events.descriptor["endpoint_host"] if plan.events.descriptor is not None else ""
    if is_loopback(host) and len({*for_ranks, *for_control}) > 1:
        yield (
            f"kv_events_config.endpoint: {host} is each node's own: routers on others can't "
            "follow the ranks there; tcp://*:PORT is for several nodes"
        )


def _ask(
    question: Question, plan: Plan, nodes: Sequence[_Node], runtime_env: Mapping[str, Any] | None = None
) -> list[int | None]:
    """What each node answers; a node that dies meanwhile is left out.

    Raises:
        KvbeaconError: the first fault, with its node and the number of others.
    """
    deadline = time.monotonic() + ANSWER_WITHIN_S
    here = ray.get_runtime_context().get_node_id()
    asked = {
        node.id: _answer_there.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
            runtime_env=runtime_env,
        ).remote(question, plan)
        for node in nodes
        if node.id != here or runtime_env
    }
    answers: list[tuple[_Node, _Answer]] = []
    for node in nodes:
        there = asked.get(node.id)
        answer = _received(node, there, deadline) if there is not None else _answer(question, plan)
        if answer is not None:
            answers.append((node, answer))
    faults = [(node, answer.fault) for node, answer in answers if answer.fault is not None]
    if faults:
        node, fault = faults[0]
        more = f" and on {len(faults) - 1} more" if len(faults) > 1 else ""
        raise type(fault)(f"{fault} (on node {node.address}{more})")
    return [answer.num_ranks for _, answer in answers]


def _answer(question: Question, plan: Plan) -> _Answer:
    try:
        return _Answer(num_ranks=question(plan))
    except KvbeaconError as error:
        return _Answer(fault=error)


@ray.remote(num_cpus=0, max_retries=0)
def _answer_there(question: Question, plan: Plan) -> _Answer:
    log_with_ray()
    return _answer(question, plan)


def _received(node: _Node, asked: ray.ObjectRef[Any], deadline: float) -> _Answer | None:
    """The answer of `node`, None if it has died; `deadline` is in `time.monotonic`'s seconds."""
    try:
        answer: _Answer = ray.get(asked, timeout=max(0.0, deadline - time.monotonic()))
    except GetTimeoutError:
        ray.cancel(asked, force=True)
        return _Answer(fault=ConfigError(f"no answer within {ANSWER_WITHIN_S:.0f} s"))
    except RayError as error:
        if node.id not in {living.id for living in _living_nodes()}:
            logger.warning("node %s died before it said what it has", node.address)
            return None
        reason = str(error).strip().splitlines()[-1]
        return _Answer(fault=ConfigError(f"it couldn't be looked at: {reason}"))
    return answer


def _num_placed(plan: Plan, nodes: Sequence[_Node]) -> float:
    """How many of the ranks Ray places on these nodes at most; others wait for nodes that are added."""
    most = plan.config.resources.max_ranks_per_node or math.inf
    places = (max(node.places(needs) for needs in plan.placement.bundles) for node in nodes)
    return min(plan.config.expected_dp_size, sum(min(most, each) for each in places))


def _check_memory(plan: Plan, fitting: Sequence[int | None], num_placed: float) -> None:
    """Refuse more ranks than memory holds of those that Ray would place, where each node knows it."""
    known = [number for number in fitting if number is not None]
    if len(known) < len(fitting) or not known:
        return
    total = sum(known)
    if total < num_placed:
        setting = "dp_size" if plan.config.autoscaling is None else "autoscaling.min_ranks"
        raise InsufficientMemoryError(
            f"{setting} = {plan.config.expected_dp_size}: the memory of all nodes holds {total} ranks with "
            "weights and cache; take fewer ranks, fewer engine.cache.num_blocks or a smaller model"
        )
