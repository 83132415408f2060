"""OpenAI's client for Node: chats and responses, streamed and whole, with calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.support.graph.scripted_app import call_of, write_script
from tests.support.graph.serve_graph import ServeGraph

PROGRAM = """\
const OpenAI = require("openai");
const client = new OpenAI({ baseURL: process.argv[1], apiKey: "none", maxRetries: 0 });
const model = "scripted";
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const question = { role: "user", content: "How is the weather in Paris?" };

async function main() {
  const tools = [{ type: "function", function: { name: "weather", parameters } }];
  const runner = client.chat.completions.stream({ model, tools, messages: [question] });
  const said = (await runner.finalChatCompletion()).choices[0].message;
  const result = { role: "tool", tool_call_id: said.tool_calls[0].id, content: "18 degrees" };
  const chat = await client.chat.completions.create({ model, tools, messages: [question, said, result] });

  const own = [{ type: "function", name: "weather", parameters, strict: false }];
  const stream = client.responses.stream({ model, tools: own, input: [question] });
  let written = "";
  stream.on("response.function_call_arguments.delta", (event) => { written += event.delta; });
  const first = await stream.finalResponse();
  const call = first.output.find((item) => item.type === "function_call");
  const output = { type: "function_call_output", call_id: call.call_id, output: "18 degrees" };
  const last = await client.responses.create({
    model, tools: own, previous_response_id: first.id, input: [output],
  });
  console.log(JSON.stringify({
    chat: chat.choices[0].message.content,
    called: said.tool_calls[0].function,
    written,
    call: { name: call.name, arguments: call.arguments },
    text: first.output_text,
    last: last.output_text,
  }));
}
main();
"""


def test_chats_and_responses_with_calls(
    tmp_path: Path, scripted_model: Path, scripted_graph: ServeGraph, run_client: Callable[..., str]
) -> None:
    write_script(scripted_model, "I look." + call_of("weather", city="Paris"), "It is warm.")
    said = json.loads(run_client("node", "-e", PROGRAM, f"{scripted_graph.url}/v1", cwd=tmp_path))
    arguments = '{"city": "Paris"}'
    call = {"name": "weather", "arguments": arguments}
    assert {**said["called"], **call} == said["called"]
    assert (said["chat"], said["last"]) == ("It is warm.", "It is warm.")
    assert (said["text"], said["written"], said["call"]) == ("I look.", arguments, call)
