"""The Claude Code command line edits a file, through `/v1/messages` of a whole graph."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.support.graph.scripted_app import call_of, write_script
from tests.support.graph.serve_graph import ServeGraph

SWITCHES = {
    "ANTHROPIC_API_KEY": "none",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
}
"""No reports, no updates: it asks the model and nobody else."""


def test_it_edits_a_file(
    tmp_path: Path,
    scripted_model: Path,
    scripted_graph: ServeGraph,
    run_client: Callable[..., str],
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    file = work / "colors.txt"
    file.write_text("red\ngreen\n")
    write_script(
        scripted_model,
        "I look at the file." + call_of("Read", file_path=str(file)),
        call_of("Edit", file_path=str(file), old_string="green", new_string="blue"),
        "The file says blue now.",
    )
    how = ("--model", "scripted", "--allowedTools", "Read Edit", "--output-format", "json")
    said = json.loads(
        run_client(
            "claude",
            *("--print", "Make green blue in colors.txt.", *how),
            cwd=work,
            ANTHROPIC_BASE_URL=scripted_graph.url,
            **SWITCHES,
        )
    )
    assert (said["subtype"], said["result"]) == ("success", "The file says blue now.")
    assert said["num_turns"] == 3
    assert file.read_text() == "red\nblue\n"
    assert said["usage"]["input_tokens"] > 5000
