"""What `engine.vllm` may say, and what vLLM is told of the rest of the config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.config import AppConfig, load_config
from app.engine.resources import rank_placement
from app.engine.vllm.arguments import DECIDED, check_given, check_known, engine_arguments
from app.errors import ConfigError


def config(vllm: dict[str, Any] | None = None, **args: Any) -> AppConfig:
    """A config with this `engine.vllm`; other parts of `engine` under `engine`."""
    engine = {"backend": "vllm", "vllm": vllm or {}, **args.pop("engine", {})}
    return load_config({"engine": engine, **args})


def arguments(settings: AppConfig, *, on_cpu: bool = False, available: int | None = None) -> dict[str, Any]:
    return engine_arguments(settings, Path("/m"), on_cpu=on_cpu, available_bytes=available)


@pytest.mark.parametrize("name", sorted(DECIDED))
def test_what_another_setting_decides_is_refused_by_both_names(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"engine\.vllm\.{name} = 1: {DECIDED[name]} decides this"):
        check_given(config({name: 1}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"enable_prefix_caching": False}, r"engine\.vllm\.enable_prefix_caching = False: allowed: True"),
        ({"scheduling_policy": "fcfs"}, r"engine\.vllm\.scheduling_policy = 'fcfs': allowed: 'priority'"),
        ({"data_parallel_size": 2}, r"engine\.vllm\.data_parallel_size = 2: dp_size decides"),
        ({"data_parallel_rank": 0}, r"engine\.vllm\.data_parallel_rank = 0: dp_size decides"),
        ({"prefill_context_parallel_size": 2}, r"vllm\.prefill_context_parallel_size = 2: allowed: 1"),
        ({"nnodes": 2}, r"engine\.vllm\.nnodes = 2: allowed: 1"),
        ({"device_ids": [0]}, r"engine\.vllm\.device_ids = \[0\]: allowed: None"),
        ({"runner": "pooling"}, r"engine\.vllm\.runner = 'pooling': allowed: 'auto' or 'generate'"),
        ({"tensor_parallel_size": 0}, r"engine\.vllm\.tensor_parallel_size = 0: allowed: an integer"),
        ({"tensor_parallel_size": "2"}, r"engine\.vllm\.tensor_parallel_size = '2': allowed: an integer"),
    ],
)
def test_contradictions_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_given(config(given))


@pytest.mark.parametrize("name", ["memory_fraction", "num_blocks"])
def test_the_size_of_the_cache_is_said_once(name: str) -> None:
    size = {"kv_cache_memory_bytes": 2**30}
    with pytest.raises(
        ConfigError, match=rf"engine\.vllm\.kv_cache_memory_bytes = .*: engine\.cache\.{name}"
    ):
        check_given(config(size, engine={"cache": {name: 0.5 if name == "memory_fraction" else 9}}))
    check_given(config(size))
    assert arguments(config(size), on_cpu=True, available=1000)["kv_cache_memory_bytes"] == 2**30


def test_vllm_evicts_as_it_does() -> None:
    message = r"engine\.cache\.eviction = 'segmented': vLLM has an eviction of its own; allowed: 'lru'"
    with pytest.raises(ConfigError, match=message):
        check_given(config({}, engine={"cache": {"eviction": "segmented"}}))
    check_given(config({"kv_cache_memory_bytes": 2**30}, engine={"cache": {"eviction": "lru"}}))


def test_the_same_as_kvbeacon_relies_on_may_be_said() -> None:
    check_given(config({"enable_prefix_caching": True, "enforce_eager": True, "nnodes": 1, "runner": "auto"}))


def test_arguments_for_vllm_need_it_as_backend() -> None:
    with pytest.raises(ConfigError, match=r"engine\.vllm = .*: allowed only with engine.backend: vllm"):
        check_given(load_config({"engine": {"vllm": {"enforce_eager": True}}}))
    check_given(load_config({}))


def test_a_refusal_shows_no_secret() -> None:
    with pytest.raises(ConfigError, match=r"'hf_token': '\*\*\*'"):
        check_given(load_config({"engine": {"vllm": {"hf_token": "hunter2"}}}))


def test_kernels_are_vllms_own() -> None:
    with pytest.raises(ConfigError, match=r"engine\.kernels = 'triton': vLLM has its own"):
        check_given(config(engine={"kernels": "triton"}))


def test_an_unknown_argument_is_refused_with_a_near_match() -> None:
    known = {"enforce_eager", "tensor_parallel_size"}
    check_known(["enforce_eager"], known)
    with pytest.raises(ConfigError, match=r"engine\.vllm\.enforce-eager: .*did you mean 'enforce_eager'"):
        check_known(["enforce-eager"], known)
    with pytest.raises(ConfigError, match=r"engine\.vllm\.zzz: this vLLM has no such engine argument$"):
        check_known(["zzz"], known)


def test_the_configs_numbers_are_vllms() -> None:
    settings = config(
        {"enforce_eager": True},
        model={"dtype": "bfloat16", "max_model_len": 4096},
        engine={
            "cache": {"block_size": 32, "num_blocks": 100},
            "scheduler": {"max_running_requests": 300, "max_batch_tokens": 256},
        },
    )
    found = arguments(settings)
    expected = {
        "model": "/m",
        "dtype": "bfloat16",
        "block_size": 32,
        "num_gpu_blocks_override": 101,  # one of its blocks holds nothing
        "max_model_len": 3200,  # what the cache holds
        "max_num_seqs": 256,
        "max_num_batched_tokens": 256,
        "scheduling_policy": "priority",
        "enable_prefix_caching": True,
        "generation_config": "vllm",
        "enforce_eager": True,
    }
    assert found | expected == found


def test_the_context_is_what_memory_allows_unless_it_is_set() -> None:
    assert arguments(config())["max_model_len"] == -1
    assert arguments(config(model={"max_model_len": 8192}))["max_model_len"] == 8192


def test_structured_output_has_our_librarys_dialects_unless_it_is_said_otherwise() -> None:
    for given, expected in (
        ({}, {"backend": "guidance"}),
        ({"disable_any_whitespace": True}, {"backend": "guidance", "disable_any_whitespace": True}),
        ({"backend": "xgrammar"}, {"backend": "xgrammar"}),
    ):
        found = arguments(config({"structured_outputs_config": given}))
        assert found["structured_outputs_config"] == expected


def test_memory() -> None:
    assert "gpu_memory_utilization" not in arguments(config())  # vLLM's default: ours would hold no weights
    set_one = config(engine={"cache": {"memory_fraction": 0.8}})
    assert arguments(set_one)["gpu_memory_utilization"] == 0.8
    assert arguments(set_one, on_cpu=True, available=1000)["kv_cache_memory_bytes"] == 800
    assert arguments(config(), on_cpu=True, available=1000)["kv_cache_memory_bytes"] == 100
    by_environment = arguments(set_one, on_cpu=True)
    assert not {"kv_cache_memory_bytes", "gpu_memory_utilization"} & by_environment.keys()


def test_tensor_parallel_workers_are_the_replicas_own_processes() -> None:
    settings = config({"tensor_parallel_size": 2}, resources={"num_cpus": 4, "num_gpus": 2})
    assert (settings.tp_size, settings.num_engine_workers) == (2, 2)
    assert arguments(settings)["distributed_executor_backend"] == "mp"
    placement = rank_placement(settings)
    assert placement.actor == {"num_cpus": 4.0, "num_gpus": 2.0}
    assert placement.group == {}


def test_workers_as_actors_have_the_replicas_placement_group() -> None:
    given = {"tensor_parallel_size": 2, "distributed_executor_backend": "ray"}
    placement = rank_placement(config(given, resources={"num_cpus": 4, "num_gpus": 2}))
    assert placement.actor == {"num_cpus": 4.0, "num_gpus": 0.0}
    assert placement.group == {
        "placement_group_bundles": [{"CPU": 4.0, "GPU": 1.0}, {"GPU": 1.0}],
        "placement_group_strategy": "STRICT_PACK",
    }
    with_context = config({**given, "prefill_context_parallel_size": 2}, resources={"num_gpus": 4})
    assert (with_context.tp_size, with_context.num_engine_workers) == (2, 4)
    over_nodes = config({**given, "pipeline_parallel_size": 2}, resources={"num_gpus": 4})
    assert len(rank_placement(over_nodes).group["placement_group_bundles"]) == 4
    assert rank_placement(over_nodes).group["placement_group_strategy"] == "PACK"


@pytest.mark.parametrize(
    ("executor", "num_gpus", "allowed"), [("mp", 1, "0 or 2"), ("mp", 4, "0 or 2"), ("ray", 0, "2")]
)
def test_gpus_that_arent_one_for_each_worker_are_refused(executor: str, num_gpus: int, allowed: str) -> None:
    given = {"tensor_parallel_size": 2, "distributed_executor_backend": executor}
    with pytest.raises(ConfigError, match=rf"resources\.num_gpus = {num_gpus}\.0: .*allowed: {allowed}$"):
        rank_placement(config(given, resources={"num_gpus": num_gpus}))


def test_ranks_of_a_node_can_be_limited_except_where_ray_places_their_workers() -> None:
    limit = {"num_gpus": 2, "max_ranks_per_node": 3}
    assert rank_placement(load_config({"resources": limit})).group == {"max_replicas_per_node": 3}
    given: dict[str, Any] = {"tensor_parallel_size": 2}
    assert rank_placement(config(given, resources=limit)).group == {"max_replicas_per_node": 3}
    given["distributed_executor_backend"] = "ray"
    with pytest.raises(ConfigError, match=r"resources\.max_ranks_per_node = 3: .*allowed: null$"):
        rank_placement(config(given, resources=limit))
    with pytest.raises(ConfigError, match=r"max_routers_per_node = 101: .*less than or equal to 100"):
        load_config({"routing": {"max_routers_per_node": 101}})


def test_a_nodes_needs_are_a_whole_ranks_or_one_bundles() -> None:
    assert rank_placement(config(resources={"num_gpus": 0.5})).bundles == [{"CPU": 1.0, "GPU": 0.5}]
    given = {"tensor_parallel_size": 2, "distributed_executor_backend": "ray"}
    placement = rank_placement(config(given, resources={"num_cpus": 4, "num_gpus": 2}))
    assert placement.bundles == [{"CPU": 4.0, "GPU": 1.0}, {"GPU": 1.0}]


def test_one_worker_needs_what_the_config_says() -> None:
    for settings in (config(resources={"num_gpus": 0.5}), load_config({"resources": {"num_gpus": 0.5}})):
        assert settings.tp_size == 1
        assert rank_placement(settings).actor == {"num_cpus": 1.0, "num_gpus": 0.5}
        assert rank_placement(settings).group == {}


@pytest.mark.parametrize(
    ("python", "command"), [("/v/bin/python", "/v/bin/python"), ("/my v/bin/python", "'/my v/bin/python'")]
)
@pytest.mark.parametrize("executor", ["mp", "ray"])
def test_another_python_is_what_ray_starts(python: str, command: str, executor: str) -> None:
    given = {"tensor_parallel_size": 2, "distributed_executor_backend": executor}
    placement = rank_placement(config(given, resources={"num_gpus": 2, "python": python}))
    assert placement.actor["runtime_env"] == {"py_executable": command}
    assert rank_placement(load_config({"resources": {"python": python}})).actor == {
        "num_cpus": 1.0,
        "num_gpus": 0.0,
        "runtime_env": {"py_executable": command},
    }
