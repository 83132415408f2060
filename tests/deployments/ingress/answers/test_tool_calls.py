"""From a chat with tools to its calls: the real reader, engine (random weights) and answers, without Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from openai.types.chat import ChatCompletion
from starlette.requests import Request
from starlette.types import Message

from app.api.openai.requests import ChatRequest, parse_chat
from app.api.openai.responses import AnswerShape
from app.deployments.ingress.answers.completions import stream_answer, whole_answer
from app.deployments.ingress.request_reader import PreparedRequest, RequestReader
from app.engine.torch.engine import Engine
from app.generation import TokenChunk
from app.settings.engine import EngineConfig
from app.settings.ingress import IngressConfig
from app.settings.model import ModelConfig
from app.text.chat_prompt import ChatPrompter
from app.text.grammar import GrammarCompiler
from app.text.output.formats import OutputFormats
from app.text.template.chat_template import ChatTemplate
from app.text.tokenizer import Tokenizer
from tests.support.fake_deployments import begun

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for call in m.tool_calls %}<tool_call>"
    "{{ call.function | tojson }}</tool_call>{% endfor %}\n{% endfor %}"
)
QUESTION = {"role": "user", "content": "What is the weather?"}
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "London"]}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": CITY | {"additionalProperties": False}}}
    for name in ("get_weather", "get_time")
]
NAMED = {"type": "function", "function": {"name": "get_time"}}


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_file(str(smollm2_dir / "tokenizer.json"))
    return Tokenizer(backend, eos_token_ids=[2], chat_template=ChatTemplate(TEMPLATE, {}))


@pytest.fixture(scope="module")
def reader(tokenizer: Tokenizer) -> RequestReader:
    config = ModelConfig()
    prompter, outputs = ChatPrompter(tokenizer, config), OutputFormats(tokenizer, config, constrains=True)
    return RequestReader(
        IngressConfig(), tokenizer, prompter, outputs, model_names=("mine",), max_model_len=1024
    )


@pytest.fixture(scope="module")
def engine(new_tiny_llama: Callable[..., Path], smollm2_dir: Path, tokenizer: Tokenizer) -> Engine:
    folder = new_tiny_llama(
        vocab_size=tokenizer.vocab_size, hidden_size=32, eos_token_id=[2], max_position_embeddings=1024
    )
    compiler = GrammarCompiler.from_folder(smollm2_dir, [2])
    config = EngineConfig.model_validate({"cache": {"block_size": 16, "num_blocks": 128}})
    hooks: dict[str, Any] = {"new_text_stream": tokenizer.text_stream, "new_grammar": compiler.grammar}
    return Engine.load(folder, config, device="cpu", dtype="float32", **hooks)


async def read(reader: RequestReader, **fields: Any) -> PreparedRequest[ChatRequest]:
    body = json.dumps({"messages": [QUESTION], "tools": TOOLS, "seed": 5} | fields).encode()

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    return await reader.read(Request(scope, receive), parse_chat)


def computed(engine: Engine, prepared: PreparedRequest[ChatRequest]) -> list[TokenChunk]:
    engine.add_request(prepared.generate)
    chunks = []
    while engine.has_work():
        for output in engine.step().outputs:
            assert output.error is None
            chunks.append(TokenChunk(output.new_token_ids, 9, 0, output.finish_reason, output.index))
    return chunks


@pytest.mark.parametrize("choice", ["required", NAMED])
async def test_a_call_that_is_required_comes_from_any_model(
    reader: RequestReader, engine: Engine, tokenizer: Tokenizer, choice: Any
) -> None:
    prepared = await read(reader, tool_choice=choice, parallel_tool_calls=False)
    chunks = computed(engine, prepared)
    shape = AnswerShape("chat", "1", "m", output=prepared.output)
    answer = await whole_answer(shape, (await begun(chunks)).stream, tokenizer.text_stream())
    (said,) = ChatCompletion.model_validate(answer).choices
    assert (said.finish_reason, said.message.content) == ("tool_calls", None)
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    allowed = ("get_time",) if choice == NAMED else ("get_weather", "get_time")
    assert call["function"]["name"] in allowed
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "London")
    lines = [
        line
        async for line in stream_answer(
            shape, (await begun(chunks)).stream, tokenizer.text_stream(), usage="none"
        )
    ]
    events = [json.loads(line.removeprefix(b"data: "))["choices"][0] for line in lines[:-1]]
    parts = [part for event in events for part in event["delta"].get("tool_calls", [])]
    assert parts[0]["id"] == call["id"]
    assert "".join(part["function"]["arguments"] for part in parts) == call["function"]["arguments"]
    assert events[-1]["finish_reason"] == "tool_calls"

    result = {"role": "tool", "tool_call_id": call["id"], "content": "18 degrees"}
    said_again = {"role": "assistant", "content": None, "tool_calls": [call]}
    following = await read(reader, messages=[QUESTION, said_again, result])
    prompt = tokenizer.decode(following.generate.prompt_token_ids)
    assert call["function"]["name"] in prompt.partition("<tool_call>")[2]
    assert "tool: 18 degrees" in prompt


async def test_tools_that_arent_to_be_called_are_written_and_nothing_is_looked_for(
    reader: RequestReader, tokenizer: Tokenizer
) -> None:
    prepared = await read(reader, tool_choice="none")
    assert "get_weather" in tokenizer.decode(prepared.generate.prompt_token_ids)
    assert prepared.output.calls == "none"
    assert prepared.generate.params.structured_output is None
