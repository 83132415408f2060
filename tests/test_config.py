"""Settings: which values are accepted, and the texts of refusals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from app.config import AppConfig, load_config
from app.errors import ConfigError


def test_nothing_given_is_the_default_model_on_two_ranks() -> None:
    config = load_config({})
    assert config == AppConfig()
    assert config.dp_size == 2
    assert config.model.path == "smollm2-135m-instruct"
    assert config.kv_events_config is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"dp_size": 0}, "args.dp_size = 0: Input should be greater than or equal to 1"),
        ({"dp_size": 1025}, "args.dp_size = 1025"),
        ({"model": {"dtype": "int4"}}, "args.model.dtype = 'int4'"),
        ({"model": {"path": ""}}, "args.model.path = ''"),
        ({"model": {"max_model_len": 0}}, "args.model.max_model_len = 0"),
        ({"engine": {"cache": {"block_size": 0}}}, "args.engine.cache.block_size = 0"),
        ({"engine": {"cache": {"block_size": -16}}}, "args.engine.cache.block_size = -16"),
        ({"engine": {"cache": {"block_size": None}}}, "args.engine.cache.block_size = None"),
        ({"engine": {"cache": {"memory_fraction": 1.0}}}, "args.engine.cache.memory_fraction = 1.0"),
        ({"engine": {"scheduler": {"max_batch_tokens": 0}}}, "args.engine.scheduler.max_batch_tokens = 0"),
        ({"engine": {"kernels": "cuda"}}, "args.engine.kernels = 'cuda'"),
        ({"resources": {"num_gpus": -1}}, "args.resources.num_gpus = -1"),
        ({"routing": {"policy": 7}}, "args.routing.policy = 7: Input should be a valid string"),
        ({"routing": {"discovery_interval_s": 0}}, "args.routing.discovery_interval_s = 0"),
        ({"routing": {"discovery_interval_s": math.inf}}, "args.routing.discovery_interval_s = inf"),
        ({"resources": {"num_gpus": math.inf}}, "args.resources.num_gpus = inf"),
        ({"resources": {"python": "bin/python"}}, "args.resources.python = 'bin/python': Value error, an"),
        ({"resources": {"python": ""}}, "args.resources.python = ''"),
        ({"ingress": {"max_retries": -1}}, "args.ingress.max_retries = -1"),
        ({"ingress": {"tenant_header": 7}}, "args.ingress.tenant_header = 7: Input should be a valid string"),
        ({"kv_events_config": ["zmq"]}, "args.kv_events_config = ['zmq']"),
        ({"kv_events_config": {1: "zmq"}}, "args.kv_events_config = {1: 'zmq'}"),
        ({"kv_events_config": {"hwm": float("nan")}}, "args.kv_events_config = {'hwm': nan}"),
        ({"kv_events_config": {"topic": {1}}}, "args.kv_events_config = {'topic': {1}}"),
        ({"kv_events_config": {"topic": "\ud800"}}, "args.kv_events_config = {'topic': '\\ud800'}"),
    ],
)
def test_a_wrong_value_is_named_with_its_path(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(args)
    assert str(caught.value).startswith(message)


def refusal_of_tenant_header(name: str) -> str:
    """The message that refuses this header, which it names."""
    with pytest.raises(ConfigError) as caught:
        load_config({"ingress": {"tenant_header": name}})
    message = str(caught.value)
    assert message.startswith(f"args.ingress.tenant_header = {name!r}: ")
    return message


@pytest.mark.parametrize("name", ["X-Tenant", "x-tenant-id", "X_Org", "tenant", "x-forwarded-user", "T" * 64])
def test_a_header_for_tenants(name: str) -> None:
    assert load_config({"ingress": {"tenant_header": name}}).ingress.tenant_header == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "X-Tenant ",
        "X Tenant",
        "X-Tenant:",
        "X,Tenant",
        "Tenänt",
        "x-tenant\n",
        "a\0",
        "(t)",
        "T" * 65,
    ],
)
def test_a_tenant_header_that_is_no_header_is_refused(name: str) -> None:
    assert "1 to 64 letters, digits and" in refusal_of_tenant_header(name)


@pytest.mark.parametrize(
    "name",
    [
        *("Connection", "keep-alive", "TE", "Transfer-Encoding", "Upgrade", "Proxy-Authorization", "Host"),
        *(
            "Content-Type",
            "content-length",
            "Content_Type",
            "Accept",
            "Accept-Language",
            "Authorization",
            "Cookie",
        ),
        *("Forwarded", "X-Forwarded-For", "X-Request-Id", "x_request_id", "X-Data-Parallel-Rank"),
        *("x-session-id", "serve_multiplexed_model_id"),
    ],
)
def test_a_tenant_header_that_means_something_else_is_refused(name: str) -> None:
    assert "means something else" in refusal_of_tenant_header(name)


@pytest.mark.parametrize(
    ("args", "path", "allowed"),
    [
        ({"dp_sizes": 2}, "args.dp_sizes", "dp_size"),
        ({"engine": {"cache": {"blocks": 2}}}, "args.engine.cache.blocks", "num_blocks"),
        ({"routing": {"retries": 2}}, "args.routing.retries", "num_routers"),
    ],
)
def test_an_unknown_key_is_named_with_what_is_allowed_there(
    args: dict[str, Any], path: str, allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(args)
    message = str(caught.value)
    assert message.startswith(f"{path}: unknown key; allowed here: ")
    assert allowed in message.split("allowed here: ")[1].split(", ")


def test_every_fault_is_reported_at_once() -> None:
    with pytest.raises(ConfigError, match=r"args\.dp_size = 0.*; args\.nmodel: unknown key"):
        load_config({"dp_size": 0, "nmodel": {}})


def test_settings_never_change() -> None:
    config = load_config({})
    with pytest.raises(ValidationError):
        config.engine.cache.block_size = 32  # type: ignore[misc]


def settings_models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings_models(field.annotation)


@pytest.mark.parametrize("model", list(settings_models(AppConfig)), ids=lambda model: model.__name__)
def test_every_setting_is_described_refuses_unknown_keys_and_is_frozen(model: type[BaseModel]) -> None:
    assert model.model_config["extra"] == "forbid"
    assert model.model_config["frozen"]
    assert model.__doc__
    inner = set(settings_models(model)) - {model}
    for name, field in model.model_fields.items():
        assert field.description or field.annotation in inner, name
