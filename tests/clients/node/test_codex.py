"""The Codex command line edits a file, through `/v1/responses` of a whole graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support.graph.scripted_app import call_of, write_script
from tests.support.graph.serve_graph import ServeGraph

CONFIG = """\
model = "scripted"
model_provider = "kvbeacon"
model_context_window = 65536
check_for_update_on_startup = false
[analytics]
enabled = false
[model_providers.kvbeacon]
name = "kvbeacon"
base_url = "{url}/v1"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""


def test_it_edits_a_file(
    tmp_path: Path,
    scripted_model: Path,
    scripted_graph: ServeGraph,
    run_client: Callable[..., str],
) -> None:
    write_script(
        scripted_model,
        "I look at the file." + call_of("exec_command", cmd="cat colors.txt"),
        call_of("exec_command", cmd="sed -i s/green/blue/ colors.txt && cat colors.txt"),
        "The file says blue now.",
    )
    work, codex_home = tmp_path / "work", tmp_path / "codex"
    for folder in (work, codex_home):
        folder.mkdir()
    (work / "colors.txt").write_text("red\ngreen\n")
    (codex_home / "config.toml").write_text(CONFIG.format(url=scripted_graph.url))
    how = ("exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
    said = run_client("codex", *how, "Make green blue in colors.txt.", cwd=work, CODEX_HOME=str(codex_home))
    assert "The file says blue now." in said
    assert (work / "colors.txt").read_text() == "red\nblue\n"
