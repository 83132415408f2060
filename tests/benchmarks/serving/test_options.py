"""The serving benchmark's command line, and the plan that it leads to."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import yaml

from benchmarks.serving.options import DEFAULT_CONFIG, Options, parse_options
from benchmarks.serving.plan import make_plan


def test_short_changes_only_sizes_that_are_not_given() -> None:
    options = _parse("--short", "--users", "9")
    assert options.shape.users == 9
    assert options.shape.system_words < _parse().shape.system_words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--users", "0"], "argument --users: '0': an integer of at least 1 is needed"),
        (["--turns", "many"], "argument --turns: 'many': an integer of at least 1 is needed"),
        (["--config", "/no/such.yaml"], "argument --config: '/no/such.yaml': no such file"),
        (["--policies", "random"], "argument --policies: invalid choice: 'random'"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _parse(*arguments)
    assert message in capsys.readouterr().err


def test_a_rank_holds_more_than_its_share_and_less_than_everything(smollm2_dir: Path) -> None:
    plan = make_plan(_parse())
    num_blocks = plan.config.engine.cache.num_blocks
    assert num_blocks is not None
    assert plan.needed_blocks / plan.config.dp_size < num_blocks < plan.needed_blocks


def test_a_config_of_the_users_own_keeps_its_cache(smollm2_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(DEFAULT_CONFIG.read_text())
    own = yaml.safe_load(file.read_text())["applications"][0]["args"]["engine"]["cache"]["num_blocks"]
    assert make_plan(_parse("--config", str(file))).config.engine.cache.num_blocks == own
    plan = make_plan(_parse("--config", str(file), "--num-blocks", "33", "--ranks", "3"))
    assert (plan.config.engine.cache.num_blocks, plan.config.dp_size) == (33, 3)


def _parse(*arguments: str) -> Options:
    return parse_options(argparse.ArgumentParser(), arguments)
