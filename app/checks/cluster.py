"""Asks the nodes of a Ray cluster whether ranks, routers and ingresses could start on them.

Which node gets a replica is Ray's choice, so each that can hold one must have what it needs. The running
service holds CPUs and GPUs: nodes are asked by tasks that need none.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from app.checks.machine import check_for_control, check_for_rank, check_python
from app.checks.plan import CONTROL_CPUS, Plan
from app.deployments.logs import log_with_ray
from app.errors import ConfigError, InsufficientMemoryError, KvbeaconError

logger = logging.getLogger("ray.serve")

ANSWER_WITHIN_S = 600.0
"""Of each round of questions: a known model may have to be fetched first."""

Question = Callable[[Plan], int | None]


@dataclass(frozen=True, slots=True)
class _Node:
    """One node that lives: Ray's id, its address, what it has in all."""

    id: str
    address: str
    resources: Mapping[str, float]

    def holds(self, needs: Mapping[str, float]) -> bool:
        """Whether it could, if nothing else ran there."""
        return all(self.resources.get(name, 0.0) >= amount for name, amount in needs.items())


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a node says: what is wrong there, or how many ranks its memory holds, where that is known."""

    fault: KvbeaconError | None = None
    num_ranks: int | None = None


def check_cluster(plan: Plan) -> None:
    """Refuse what ranks, routers or ingresses would refuse when they start. Without a cluster, ask nobody.

    What the service that is to be replaced has, its ports and its share of the memory, isn't looked at.

    Raises:
        ModelError, ConfigError: what one of them would raise, and on which node.
    """
    if not ray.is_initialized():
        return
    log_with_ray()
    nodes = _living_nodes()
    for_ranks = [node for node in nodes if any(node.holds(needs) for needs in plan.placement.bundles)]
    if not for_ranks:
        # It may come yet: clusters can grow on demand.
        logger.warning(
            "no node of the cluster has %s, which a rank needs: the ranks wait for one, and nothing of them "
            "is checked",
            " or ".join(str(dict(needs)) for needs in plan.placement.bundles),
        )
    if plan.config.resources.python is not None:
        _ask(check_python, plan, for_ranks)
    fitting = _ask(check_for_rank, plan, for_ranks, plan.placement.runtime_env)
    _ask(check_for_control, plan, [node for node in nodes if node.holds({"CPU": CONTROL_CPUS})])
    _check_memory(plan, fitting)


def _living_nodes() -> list[_Node]:
    return [
        _Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"])
        for node in ray.nodes()
        if node["Alive"]
    ]


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


def _received(node: _Node, asked: ray.ObjectRef, deadline: float) -> _Answer | None:
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


def _check_memory(plan: Plan, fitting: Sequence[int | None]) -> None:
    """Refuse more ranks than the memory of all nodes holds, where each node knows it."""
    known = [number for number in fitting if number is not None]
    if known and len(known) == len(fitting) and (total := sum(known)) < plan.config.dp_size:
        raise InsufficientMemoryError(
            f"dp_size = {plan.config.dp_size}: the memory of all nodes holds {total} ranks with weights and "
            f"cache; take fewer ranks, fewer engine.cache.num_blocks or a smaller model"
        )
