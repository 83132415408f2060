"""Which model is served and in what form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from app.settings.base import PositiveInt, Settings

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

ServedName = Annotated[str, Field(min_length=1)]


class ModelConfig(Settings):
    """Which model is served and in what form."""

    path: str = Field(
        "smollm2-135m-instruct",
        min_length=1,
        description="A local folder in the Hugging Face layout, a local .gguf file, a known model's name, or "
        "an id of the Hugging Face Hub (organisation/name).",
    )
    served_name: ServedName | tuple[ServedName, ...] | None = Field(
        None,
        description="The name that clients use, or a list of names; answers have the first. Default: the "
        "last part of `path`, without .gguf. An id of the Hub may always be used too.",
    )
    cache_dir: Path | None = Field(
        None,
        description="Folder for converted models. Default: kvbeacon/models in the user's cache folder. "
        "Models of the Hugging Face Hub stay in its own cache (`HF_HUB_CACHE`).",
    )
    device: Device = Field("auto", description="`auto` takes cuda when there is one, else cpu.")
    dtype: Dtype = Field("auto", description="`auto` takes what runs fastest on the device.")
    max_model_len: PositiveInt | None = Field(
        None, description="Longest prompt plus output in tokens. Default: the model's context."
    )
    chat_template_content_format: Literal["auto", "string", "openai"] = Field(
        "auto",
        description="How the chat template takes a message's content: as a string, or as a list of parts in "
        "OpenAI's form. `auto` looks whether the template loops over it.",
    )
    special_tokens_in_messages: Literal["tokens", "text"] = Field(
        "tokens",
        description="What the text of a special token inside a chat's message is, such as `<|im_end|>`: that "
        "token, or as `text` the tokens of its characters, so that no message can end its turn.",
    )
    tool_call_format: Literal[
        "auto", "none", "hermes", "qwen3_coder", "llama_json", "llama_pythonic", "mistral"
    ] = Field(
        "auto", description="How the model writes calls of tools. `auto` looks how its chat template does."
    )
    reasoning_format: Literal["auto", "none", "think"] = Field(
        "auto",
        description="Whether outputs begin with thoughts, `<think>…</think>`. `auto` looks whether the chat "
        "template knows them.",
    )

    @field_validator("served_name")
    @classmethod
    def _are_different_names(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
            raise ValueError("one name or more are needed, each once")
        return value
