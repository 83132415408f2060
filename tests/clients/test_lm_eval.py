"""lm-evaluation-harness's `local-completions`, on a data set of a few lines, beside transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.clients.conftest import RunClient
from tests.support.graph.serve_graph import ServeGraph

QUESTIONS = [
    ("The capital of France is", [" Paris", " Berlin", " a banana"], 0),
    ("Water freezes at a temperature of", [" zero degrees", " one million years"], 0),
    ("A week has", [" seventeen wheels", " seven days", " no name"], 1),
    ("The opposite of hot is", [" cold", " hot"], 0),
]
CHOICES = """
task: few_choices
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list: [{metric: acc}]
metadata: {version: 1}
"""
WRITING = """
task: few_answers
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n", "."], max_gen_toks: 8}
metric_list: [{metric: exact_match}]
metadata: {version: 1}
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with the tasks and their data."""
    data = tmp_path / "questions.jsonl"
    names = ("question", "choices", "answer")
    data.write_text("\n".join(json.dumps(dict(zip(names, each, strict=True))) for each in QUESTIONS))
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, text in (("few_choices", CHOICES), ("few_answers", WRITING)):
        (folder / f"{name}.yaml").write_text(text.replace("DATA", json.dumps(str(data))))
    return folder


def transformers_choices(smollm2_dir: Path) -> list[list[float]]:
    """The sum of the logprobs of each choice's tokens."""
    models: Any = AutoModelForCausalLM
    model = models.from_pretrained(smollm2_dir, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(smollm2_dir)

    def score(question: str, choice: str) -> float:
        whole, num_context = tokenizer.encode(question + choice), len(tokenizer.encode(question))
        with torch.inference_mode():
            logprobs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        places = range(num_context, len(whole))
        return sum(float(logprobs[place - 1, whole[place]]) for place in places)

    return [[score(question, choice) for choice in choices] for question, choices, _ in QUESTIONS]


@pytest.mark.parametrize("how", ["batch_size=4", "batch_size=1,num_concurrent=4,tokenized_requests=False"])
def test_a_task_of_choices_and_one_of_answers(
    smollm2_graph: ServeGraph, smollm2_dir: Path, tasks: Path, tmp_path: Path, run_client: RunClient, how: str
) -> None:
    batch, _, others = how.partition(",")
    url = f"model=smollm2-135m-instruct,base_url={smollm2_graph.url}/v1/completions,tokenizer_backend=remote"
    run_client(
        *("lm_eval", "run", "--model", "local-completions", "--model_args", f"{url},{others}".rstrip(",")),
        *("--tasks", "few_choices,few_answers", "--include_path", str(tasks)),
        *("--batch_size", batch.removeprefix("batch_size="), "--output_path", "out", "--log_samples"),
    )
    samples = {
        name: [
            json.loads(line)
            for line in next((tmp_path / "out").rglob(f"samples_{name}_*.jsonl")).read_text().splitlines()
        ]
        for name in ("few_choices", "few_answers")
    }
    found = [[float(each[0][0]) for each in line["resps"]] for line in samples["few_choices"]]
    for ours, theirs in zip(found, transformers_choices(smollm2_dir), strict=True):
        assert ours == pytest.approx(theirs, abs=5e-3)
    assert all(line["resps"][0][0].strip() for line in samples["few_answers"])
