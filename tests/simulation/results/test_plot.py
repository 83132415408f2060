"""The what-if's picture: what is in it, and what keeps it from being drawn."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from app.errors import ConfigError
from app.simulation.__main__ import main
from app.simulation.results.outcome import Figures
from app.simulation.results.plot import Plot
from app.simulation.results.report import WhatIf


def figures(p50_s: float, p90_s: float, p99_s: float) -> Figures:
    return Figures(0.5, p50_s, p50_s, p90_s, p99_s, 1.0, 1.0, 1.0, 0.0, {"new": 1.0}, {})


TRIED = {1: figures(5000, 8000, 9000), 4: figures(0.5, 2, 7), 5: figures(0.4, 1, 3), 8: figures(0.3, 0.9, 2)}


def test_a_drawing_has_all_percentiles_the_wanted_p99_and_what_is_beyond_the_axis(tmp_path: Path) -> None:
    file = tmp_path / "plot.svg"
    Plot(file).draw(WhatIf(TRIED, 3.0, 5), "a trace")
    drawing = file.read_text()
    for words in ("p50", "p90", "p99", "wanted p99: 3 s", "enough: 5 ranks", "ranks", "a trace"):
        assert f">{words}<" in drawing
    assert "p99: 9,000 s" in drawing
    assert "p50: 5,000 s" in drawing
    assert "beyond the axis" in drawing
    assert "p99: 7 s" not in drawing  # more than is wanted, but on the axis
    Plot(file).draw(WhatIf(TRIED, 3.0, 5), "a trace")
    assert file.read_text() == drawing


def test_too_few_ranks_are_drawn_too(tmp_path: Path) -> None:
    file = tmp_path / "plot.SVG"
    Plot(file).draw(WhatIf({1: TRIED[1]}, 3.0, None), "a trace")
    assert "a trace: not enough ranks" in file.read_text()
    assert "enough:" not in file.read_text()


def test_the_command_draws_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, config, file = tmp_path / "trace.jsonl", tmp_path / "cluster.yaml", tmp_path / "plot.png"
    config.write_text("rank: {prefill_tokens_per_s: 10, block_size: 10, num_blocks: 100}")
    lines = ({"timestamp": 0, "input_length": 10, "output_length": 1, "hash_ids": [k]} for k in range(4))
    trace.write_text("\n".join(map(json.dumps, lines)))
    assert main(["--config", str(config), "--trace", str(trace), "--p99", "2", "--plot", str(file)]) == 0
    assert file.read_bytes().startswith(b"\x89PNG")
    assert "2 ranks are enough" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "message"),
    [("plot.pdf", "its ending must be .svg or .png"), ("no/plot.svg", "there is no folder 'no'")],
)
def test_a_file_that_cannot_be_drawn_is_refused_before_the_simulation(
    file: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--trace", "none.jsonl", "--p99", "1", "--plot", file])
    assert message in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "plot.svg").mkdir()
    with pytest.raises(ConfigError, match=r"plot.svg'.*directory"):
        Plot(tmp_path / "plot.svg").draw(WhatIf(TRIED, 3.0, 5), "a trace")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match="the extra `plot`"):
        Plot(tmp_path / "plot.svg")
