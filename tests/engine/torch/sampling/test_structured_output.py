"""Random weights made to write what a schema, a regex or a grammar wants, over SmolLM2's real vocabulary."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.engine.torch.engine import Engine
from app.errors import InvalidRequestError
from app.generation import GenerateRequest, SamplingParams, StructuredOutput
from app.settings.engine import EngineConfig
from app.text.grammar import GrammarCompiler
from app.text.tokenizer import Tokenizer
from tests.support.engine.runs import run, tokens_of

Json = dict[str, Any]
Answer = tuple[str, str | None]


@pytest.fixture(scope="session")
def tokenizer(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer.from_folder(smollm2_dir)


@pytest.fixture(scope="session")
def new_engine(
    new_tiny_llama: Callable[..., Path], smollm2_dir: Path, tokenizer: Tokenizer
) -> Callable[..., Engine]:
    model_dir = new_tiny_llama(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_attention_heads=2,
        eos_token_id=list(tokenizer.eos_token_ids),
        max_position_embeddings=1024,
    )
    compiler = GrammarCompiler.from_folder(smollm2_dir, tokenizer.eos_token_ids)

    def make(num_blocks: int = 256) -> Engine:
        config = EngineConfig.model_validate({"cache": {"block_size": 16, "num_blocks": num_blocks}})
        return Engine.load(
            model_dir,
            config,
            device="cpu",
            dtype="float32",
            new_text_stream=tokenizer.text_stream,
            new_grammar=compiler.grammar,
        )

    return make


@pytest.fixture(scope="session")
def engine(new_engine: Callable[..., Engine]) -> Engine:
    return new_engine()


def answers(engine: Engine, tokenizer: Tokenizer, wanted: Sequence[SamplingParams]) -> list[Answer]:
    """Text and finish reason of each, asked at once."""
    return answers_and_waits(engine, tokenizer, wanted)[0]


def answers_and_waits(
    engine: Engine, tokenizer: Tokenizer, wanted: Sequence[SamplingParams]
) -> tuple[list[Answer], list[int]]:
    """Also how many requests waited after each step."""
    for index, params in enumerate(wanted):
        engine.add_request(GenerateRequest(str(index), [5, 6, 7], params))
    tokens: list[list[int]] = [[] for _ in wanted]
    reasons: list[str | None] = [None for _ in wanted]
    num_waiting = []
    while engine.has_work():
        for output in engine.step().outputs:
            assert output.error is None
            tokens[int(output.request_id)] += output.new_token_ids
            reasons[int(output.request_id)] = output.finish_reason
        num_waiting.append(engine.load_stat(0).num_waiting_reqs)
    engine.check_integrity()
    return [(tokenizer.decode(ids), reason) for ids, reason in zip(tokens, reasons, strict=True)], num_waiting


def params(kind: Any, source: str, max_tokens: int = 300, **changes: Any) -> SamplingParams:
    wanted = StructuredOutput(kind, source, "structured_outputs")
    fields: dict[str, Any] = {"seed": 1, "structured_output": wanted}
    return SamplingParams(max_tokens, **(fields | changes))


CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "size": {"enum": ["small", "large"]},
        "population": {"type": "integer", "minimum": 0, "maximum": 99999},
        "is_capital": {"type": "boolean"},
        "mayor": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 3}]},
    },
    "required": ["name", "size", "population", "is_capital", "mayor"],
    "additionalProperties": False,
}
SCHEMAS: list[Json] = [
    CITY,
    {"type": "array", "items": CITY, "minItems": 2, "maxItems": 2},
    {"type": "array", "items": {"type": "integer"}, "maxItems": 4},
    {"type": "string", "pattern": "^[a-f]{3}-[0-9]{2}$"},
    {"$defs": {"n": {"const": None}}, "type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}},
]


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.0}, {"temperature": 2.0, "seed": 9}])
def test_json_is_what_its_schema_says(engine: Engine, tokenizer: Tokenizer, changes: Json) -> None:
    schemas = SCHEMAS if changes else SCHEMAS * 2  # twice as many at once, with the same seed
    wanted = [params("json_schema", json.dumps(schema), 1000, **changes) for schema in schemas]
    got = answers(engine, tokenizer, wanted)
    for schema, (text, reason) in zip(schemas, got, strict=True):
        assert reason == "stop", text
        jsonschema.validate(json.loads(text), schema)
    assert changes or got[: len(SCHEMAS)] == got[len(SCHEMAS) :]


def test_regex_choice_and_grammar(engine: Engine, tokenizer: Tokenizer) -> None:
    pattern = r"(0|[1-9][0-9]{0,2})(\.[0-9]+)? (km|mi)"
    sums = 'start: N ("+" N)*\nN: /[0-9]{1,3}/'
    texts = ["yes", "no", "l'été 🙂"]
    many = [params("choice", json.dumps(texts), seed=seed) for seed in range(8)]
    measured, summed, *chosen = answers(
        engine, tokenizer, [params("regex", pattern), params("grammar", sums), *many]
    )
    assert re.fullmatch(pattern, measured[0])
    assert re.fullmatch(r"\d{1,3}(\+\d{1,3})*", summed[0])
    assert {text for text, _ in chosen} <= set(texts)
    assert {reason for _, reason in (measured, summed, *chosen)} == {"stop"}


def test_a_choice_is_made_by_the_models_own_likelihood(engine: Engine, tokenizer: Tokenizer) -> None:
    yes, no = tokenizer.encode("yes")[0], tokenizer.encode("no")[0]
    for favourite, text in ((yes, "yes"), (no, "no")):
        biased = params("choice", '["yes", "no"]', temperature=0.0, logit_bias={favourite: 100.0})
        assert answers(engine, tokenizer, [biased]) == [(text, "stop")]


def test_a_limit_or_a_stop_string_may_cut_it(engine: Engine, tokenizer: Tokenizer) -> None:
    cut = params("json_schema", json.dumps(CITY), 5)
    stopped = params("json_schema", json.dumps(CITY), stop=('"name"',))
    (text, reason), (_, stop_reason) = answers(engine, tokenizer, [cut, stopped])
    assert reason == "length"
    assert text.startswith("{")
    assert stop_reason == "stop"


@pytest.mark.parametrize("changes", [{"ignore_eos": True}, {"min_tokens": 8}, {"logit_bias": {2: 100.0}}])
def test_the_end_comes_where_it_may(engine: Engine, tokenizer: Tokenizer, changes: Json) -> None:
    ((text, reason),) = answers(engine, tokenizer, [params("regex", "a{4}a*|b", max_tokens=40, **changes)])
    assert re.fullmatch("a{4}a*|b", text)
    assert reason == ("stop" if text == "b" or "logit_bias" in changes else reason)


def test_earlier_output_goes_on_where_the_grammar_is_and_is_refused_where_it_forbids_it(
    engine: Engine, tokenizer: Tokenizer
) -> None:
    wanted = params("json_schema", json.dumps(CITY), 60)
    engine.add_request(GenerateRequest("whole", [5, 6, 7], wanted))
    whole = tokens_of(run(engine)["whole"])
    for num_earlier in range(0, len(whole), 7):
        earlier = {0: whole[:num_earlier]}
        engine.add_request(GenerateRequest("rest", [5, 6, 7], wanted, earlier_outputs=earlier))
        assert tokens_of(run(engine)["rest"]) == whole[num_earlier:]
    forbidden = {0: [*whole[:8], *tokenizer.encode("}]")]}
    with pytest.raises(InvalidRequestError, match=r"earlier_outputs\.0: structured output: .*grammar"):
        engine.add_request(GenerateRequest("wrong", [5, 6, 7], wanted, earlier_outputs=forbidden))


def test_preemption_loses_nothing(new_engine: Callable[..., Engine], tokenizer: Tokenizer) -> None:
    wanted = [params("json_schema", json.dumps(CITY), 150, seed=seed) for seed in range(4)]
    roomy = answers(new_engine(), tokenizer, wanted)
    tight, num_waiting = answers_and_waits(new_engine(num_blocks=11), tokenizer, wanted)
    assert tight == roomy
    assert num_waiting[0] == 0, "all run"
    assert max(num_waiting) > 0, "some were preempted"


def schemas() -> st.SearchStrategy[Json]:
    names = st.sampled_from(["a", "b", "long name", "ü", 'q"uote'])
    constants = st.none() | st.booleans() | st.integers(-50, 50) | names
    typed: st.SearchStrategy[Json] = st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": "integer", "minimum": -5, "maximum": 1200},
            {"type": "integer"},
            {"type": "number", "minimum": 0, "maximum": 1},
            {"type": "string", "maxLength": 4},
            {"type": "string", "pattern": "^[A-Z][a-z]{1,5}$"},
        ]
    )
    leaves = typed | constants.map(lambda value: {"const": value})

    def containers(inner: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
        arrays = st.builds(
            lambda items, count: {"type": "array", "items": items, "maxItems": count},
            inner,
            st.integers(0, 3),
        )
        objects = st.builds(
            lambda properties, keep: {
                "type": "object",
                "properties": properties,
                "required": list(properties)[:keep],
                "additionalProperties": False,
            },
            st.dictionaries(names, inner, max_size=3),
            st.integers(0, 3),
        )
        return arrays | objects | st.lists(inner, min_size=1, max_size=2).map(lambda each: {"anyOf": each})

    return st.recursive(leaves, containers, max_leaves=5)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(wanted=st.lists(schemas(), min_size=3, max_size=3), seed=st.integers(0, 1000))
def test_random_weights_keep_to_random_schemas(
    engine: Engine, tokenizer: Tokenizer, wanted: list[Json], seed: int
) -> None:
    asked = [params("json_schema", json.dumps(schema), 200, seed=seed) for schema in wanted]
    for schema, (text, reason) in zip(wanted, answers(engine, tokenizer, asked), strict=True):
        assert reason in ("stop", "length")
        if reason == "stop":
            jsonschema.validate(json.loads(text), schema)
