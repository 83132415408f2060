"""Settings of ranks by URL: what follows from them, and what contradicts them."""

from __future__ import annotations

from typing import Any

import pytest

from app.config import load_config
from app.errors import ConfigError

WORKERS = [{"url": "http://127.0.0.1:30000/", "dp_size": 2}, {"url": "https://[::1]:8/x"}]


def with_remote(workers: object = WORKERS, **args: Any) -> dict[str, Any]:
    return {"remote_ranks": {"workers": workers}, **args}


def test_ranks_are_those_of_all_workers_in_order_and_need_little() -> None:
    config = load_config(with_remote(resources={"num_gpus": 0}))
    assert (config.engine_kind, config.dp_size, config.resources.num_cpus) == ("remote", 3, 0.1)
    remote = config.remote_ranks
    assert remote is not None
    found = [remote.worker_of(rank) for rank in range(3)]
    assert [(worker.url, rank) for worker, rank in found] == [
        ("http://127.0.0.1:30000", 0),
        ("http://127.0.0.1:30000", 1),
        ("https://[::1]:8/x", 0),
    ]
    given = load_config(with_remote(dp_size=3, resources={"num_cpus": 2}))
    assert (given.dp_size, given.resources.num_cpus) == (3, 2)
    assert load_config({}).engine_kind == "torch"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (with_remote(dp_size=2), "args.dp_size = 2: remote_ranks.workers have 3 ranks"),
        (with_remote([]), "args.remote_ranks.workers = []: Value error, at least one worker"),
        (with_remote([*WORKERS, WORKERS[0]]), "http://127.0.0.1:30000 is there twice"),
        (with_remote([{"url": "http://h", "dp_size": 1024}, {"url": "http://i"}]), "1025 ranks in all"),
        (
            with_remote([{"url": "http://h", "size": 1}]),
            "args.remote_ranks.workers.0.size: unknown key; allowed",
        ),
        ({"remote_ranks": {"workers": WORKERS, "adopt": "no"}}, "args.remote_ranks.adopt = 'no'"),
        (with_remote(engine={"backend": "vllm"}), "args.engine.backend = 'vllm': remote_ranks is given"),
        (with_remote(engine={"vllm": {"x": 1}}), "args.engine.vllm = {'x': 1}: remote_ranks is given"),
        (with_remote(engine={"kernels": "cpu"}), "args.engine.kernels = 'cpu': remote_ranks is given"),
        (with_remote(engine={"cache": {"num_blocks": 9}}), "args.engine.cache.num_blocks = 9: remote_ranks"),
        (
            with_remote(engine={"cache": {"eviction": "segmented"}}),
            "args.engine.cache.eviction = 'segmented': remote_ranks is given",
        ),
        (with_remote(model={"dtype": "float32"}), "args.model.dtype = 'float32': remote_ranks is given"),
        (with_remote(resources={"num_gpus": 1}), "args.resources.num_gpus = 1.0: remote_ranks is given"),
    ],
)
def test_a_contradiction_is_named(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(args)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:80",
        "ftp://h",
        "http://",
        "http://h:0",
        "http://h:99999",
        "http://u:p@h",
        "http://:p@h",
        "http://@h",
        "http://h?a",
        "http://h#a",
    ],
)
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"args\.remote_ranks\.workers\.0\.url"):
        load_config(with_remote([{"url": url}]))
