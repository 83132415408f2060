"""Schemas of answers, by their names in the document. What they don't list may come too."""

from __future__ import annotations

from typing import Any

from app.deployments.ingress.openapi.describe import SCHEMAS

Json = dict[str, Any]

STRING: Json = {"type": "string"}
INTEGER: Json = {"type": "integer"}
TEXT_OR_NULL: Json = {"type": ["string", "null"]}
ANY_OBJECT: Json = {"type": "object"}
TOKENS: Json = {"type": "array", "items": INTEGER}


def _object(required: str, **properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": required.split()}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _one_or_list(schema: Json) -> Json:
    return {"anyOf": [schema, _list(schema)]}


def _named(name: str) -> Json:
    return {"$ref": f"{SCHEMAS}{name}"}


_FINISH_REASON: Json = {"enum": ["stop", "length", "tool_calls", None]}
_CALL = _object("", index=INTEGER, id=STRING, type=STRING, function=ANY_OBJECT)
_SAID: Json = {"content": TEXT_OR_NULL, "reasoning_content": STRING, "tool_calls": _list(_CALL)}
_NAMES: Json = {"id": STRING, "created": INTEGER, "model": STRING}


def _completion(kind: str, choice: Json, **more: Json) -> Json:
    required = "id object created model choices"
    return _object(required, **_NAMES, object={"const": kind}, choices=_list(choice), **more)


def _choice(required: str, **properties: Json) -> Json:
    shown = {"index": INTEGER, "finish_reason": _FINISH_REASON, "logprobs": {"type": ["object", "null"]}}
    return _object(f"index finish_reason {required}", **shown, token_ids=TOKENS, **properties)


_USAGE = _named("Usage")

_TRUE: Json = {"const": True}
_COUNTS = ("input_tokens", "output_tokens", "total_tokens")
_RESPONSE = _object(
    "id object created_at status model output usage error incomplete_details tools tool_choice",
    id=STRING,
    object={"const": "response"},
    created_at=INTEGER,
    status={"enum": ["in_progress", "completed", "incomplete", "failed"]},
    model=STRING,
    output=_list(_object("id type status", id=STRING, type=STRING, status=STRING)),
    usage={"anyOf": [_object(" ".join(_COUNTS), **dict.fromkeys(_COUNTS, INTEGER)), {"type": "null"}]},
    error={"type": ["object", "null"]},
    incomplete_details={"type": ["object", "null"]},
    previous_response_id=TEXT_OR_NULL,
    tools=_list(ANY_OBJECT),
    tool_choice={"type": ["string", "object"]},
)

ANSWERS: dict[str, Json] = {
    "Error": _object(
        "error",
        error=_object(
            "message type param code", message=STRING, type=STRING, param=TEXT_OR_NULL, code=TEXT_OR_NULL
        ),
    ),
    "Usage": _object(
        "prompt_tokens completion_tokens total_tokens",
        prompt_tokens=INTEGER,
        completion_tokens=INTEGER,
        total_tokens=INTEGER,
        prompt_tokens_details=_object("cached_tokens", cached_tokens=INTEGER),
    ),
    "ChatCompletion": _completion(
        "chat.completion",
        _choice("message", message=_object("role content", role={"const": "assistant"}, **_SAID)),
        usage=_USAGE,
    ),
    "ChatCompletionChunk": _completion(
        "chat.completion.chunk", _choice("delta", delta=_object("", role=STRING, **_SAID)), usage=_USAGE
    ),
    "TextCompletion": _completion("text_completion", _choice("text", text=STRING), usage=_USAGE),
    "Response": _RESPONSE,
    "ResponseEvent": _object(
        "type sequence_number",
        type=STRING,
        sequence_number=INTEGER,
        output_index=INTEGER,
        item_id=STRING,
        delta=STRING,
        item=ANY_OBJECT,
        response=_named("Response"),
    ),
    "DeletedResponse": _object("id object deleted", id=STRING, object={"const": "response"}, deleted=_TRUE),
    "ResponseInput": _object(
        "object data has_more",
        object={"const": "list"},
        data=_list(ANY_OBJECT),
        first_id=TEXT_OR_NULL,
        last_id=TEXT_OR_NULL,
        has_more={"type": "boolean"},
    ),
    "Generated": _one_or_list(
        _object("text output_ids meta_info", text=STRING, output_ids=TOKENS, meta_info=ANY_OBJECT)
    ),
    "Model": _object("id object", id=STRING, object={"const": "model"}, max_model_len=INTEGER),
    "ModelList": _object("object data", object={"const": "list"}, data=_list(_named("Model"))),
    "Tokens": _object(
        "count max_model_len tokens",
        count=_one_or_list(INTEGER),
        max_model_len=INTEGER,
        tokens=_one_or_list({"anyOf": [INTEGER, TOKENS]}),
        token_strs=_list(_one_or_list(STRING)),
    ),
    "Text": _object("prompt text", prompt=_one_or_list(STRING), text=_one_or_list(STRING)),
    "AnthropicMessage": _object(
        "id type role model content stop_reason stop_sequence usage",
        **{"id": STRING, "type": {"const": "message"}, "role": {"const": "assistant"}, "model": STRING},
        **{"content": _list(_object("type", type=STRING)), "stop_reason": TEXT_OR_NULL},
        stop_sequence=TEXT_OR_NULL,
        usage=_object(
            "input_tokens cache_creation_input_tokens cache_read_input_tokens output_tokens",
            input_tokens=INTEGER,
            cache_creation_input_tokens=INTEGER,
            cache_read_input_tokens=INTEGER,
            output_tokens=INTEGER,
        ),
    ),
    "AnthropicEvent": _object("type", type=STRING),
    "AnthropicError": _object(
        "type error request_id",
        type={"const": "error"},
        error=_object("type message", type=STRING, message=STRING, details=ANY_OBJECT),
        request_id=TEXT_OR_NULL,
    ),
    "InputTokens": _object("input_tokens", input_tokens=INTEGER),
    "Version": _object("version", version=STRING),
}
