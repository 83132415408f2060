"""The body of SGLang's `POST /generate` (`GenerateReqInput`), as far as it is served: one prompt."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from app.api.headers import NAME_PATTERN
from app.api.native.sampling import NativeSampling
from app.api.request_model import RankFields, TokenId, parse_body
from app.errors import InvalidRequestError
from app.generation import MAX_LOGPROBS, SamplingParams
from app.hashing import MAX_TENANT_SALT_CHARS

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    # Other inputs than one text,
    **dict.fromkeys(("input_embeds", "image_data", "video_data", "audio_data", "modalities"), ([],)),
    **dict.fromkeys(("mm_hashes", "mm_content_hashes", "multi_item_delimiter_indices"), ([],)),
    "use_audio_in_video": (False,),
    "video_config": ({},),
    "images_config": ({},),
    "positional_embed_overrides": (),
    "need_wait_for_mm_inputs": (False,),
    # a prompt that the server completes,
    "session_params": ({},),
    # other weights and other sampling,
    **dict.fromkeys(("lora_path", "lora_id", "custom_logit_processor"), ("",)),
    "require_reasoning": (False,),
    "max_thinking_tokens": (),
    # more in the answer,
    "token_ids_logprob": ([],),
    "routed_experts_start_len": (0,),
    **dict.fromkeys(("return_sampling_mask", "return_hidden_states", "return_routed_experts"), (False,)),
    **dict.fromkeys(("return_flat_raw_top_logprobs", "return_flat_raw_top_logprobs_b64"), (False,)),
    **dict.fromkeys(("return_indexer_topk", "return_entropy", "return_bytes"), (False,)),
    "return_prompt_token_ids": (False,),
    # a request that outlives its client, and prefill on another server.
    "background": (False,),
    **dict.fromkeys(("bootstrap_host", "bootstrap_port", "bootstrap_room", "bootstrap_pair_key"), ()),
    **dict.fromkeys(("decode_tp_size", "disagg_prefill_dp_rank"), ()),
}
"""Fields that the engine doesn't have, and the values that ask for nothing."""

_INFORMATIVE = (
    *("conversation_id", "custom_labels", "external_trace_header", "log_metrics", "no_logs", "received_time"),
    # Hints of a router to another kind of cache, and to another scheduler.
    *("kv_router_hint", "routing_key"),
    # Of images, and there are none.
    *("max_dynamic_patch", "min_dynamic_patch", "image_max_dynamic_patch", "video_max_dynamic_patch"),
)
"""Fields that never change an answer."""

_PER_PROMPT = (
    *("rid", "sampling_params", "return_logprob", "logprob_start_len", "top_logprobs_num", "extra_key"),
    *("cache_salt", "token_ids_logprob", "lora_path", "lora_id", "custom_logit_processor"),
    *("return_hidden_states", "return_sampling_mask", "image_data", "video_data", "audio_data"),
    *("bootstrap_host", "bootstrap_port", "bootstrap_room", "bootstrap_pair_key"),
)
"""Fields that may be lists beside a list of prompts, with an entry for each."""

_UNNAMED_MODEL = "unknown"

Salt = Annotated[str, Field(max_length=MAX_TENANT_SALT_CHARS)]
"""As long as one that another kvbeacon made for a tenant: it reaches its workers as it is."""


class GenerateBody(RankFields):
    """The body of POST /generate.

    A list of one prompt is taken too, and its answer is a list; longer ones are refused, as each prompt may
    belong to another rank.

    Attributes:
        given_priority: as in SGLang, higher is served first.
        incremental_streaming_output: each event of a stream has only what is new, as if SGLang had been
            started with its flag of this name; SGLang itself ignores the field in a request.
    """

    neutral_values: ClassVar[Mapping[str, tuple[Any, ...]]] = _NEUTRAL
    informative_fields: ClassVar[Collection[str]] = _INFORMATIVE

    text: str | list[str] | None = None
    input_ids: list[TokenId] | list[list[TokenId]] | None = None
    sampling_params: NativeSampling = NativeSampling()
    rid: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    model: str | None = None
    stream: bool = False
    incremental_streaming_output: bool = False
    return_logprob: bool = False
    logprob_start_len: int = -1
    top_logprobs_num: int = Field(0, ge=0, le=MAX_LOGPROBS)
    return_text_in_logprobs: bool = False
    given_priority: int = Field(0, alias="priority", gt=-(2**31), lt=2**31)
    session_id: Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")] | None = Field(None, repr=False)
    given_cache_salt: Salt | None = Field(None, alias="cache_salt", repr=False)
    extra_key: Salt | None = Field(None, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _unwrap_what_is_per_prompt(cls, values: Any) -> Any:
        if not (isinstance(values, dict) and (_is_batch(values.get("text"), values.get("input_ids")))):
            return values
        lists = {name: values[name] for name in _PER_PROMPT if isinstance(values.get(name), list)}
        return values | {name: value[0] for name, value in lists.items() if len(value) == 1}

    @field_validator("model", mode="before")
    @classmethod
    def _unnamed(cls, value: Any) -> Any:
        """SGLang's fields have no model; its router smg writes `_UNNAMED_MODEL` where a client named none."""
        return None if value == _UNNAMED_MODEL else value

    @field_validator("text", "input_ids", mode="before")
    @classmethod
    def _one_prompt(cls, value: Any, info: ValidationInfo) -> Any:
        is_batch = _is_batch(value, None) if info.field_name == "text" else _is_batch(None, value)
        if is_batch and len(value) != 1:
            message = f"{info.field_name}: {len(value)} prompts; one per request is allowed"
            raise InvalidRequestError(message, param=info.field_name)
        return value

    @model_validator(mode="after")
    def _text_or_tokens(self) -> Self:
        if self.text is None and self.input_ids is None:
            message = "text: required, or input_ids"
            raise InvalidRequestError(message, param="text", code="missing_field")
        if self.text is not None and self.input_ids is not None:
            raise InvalidRequestError("input_ids: text is given too; send one of them", param="input_ids")
        return self

    @model_validator(mode="after")
    def _logprobs_of_the_output_only(self) -> Self:
        if self.return_logprob and self.logprob_start_len != -1:
            message = (
                f"logprob_start_len = {self.logprob_start_len}: allowed is -1, the output's logprobs only"
            )
            raise InvalidRequestError(message, param="logprob_start_len", code="unsupported_field")
        return self

    @model_validator(mode="after")
    def _one_salt(self) -> Self:
        if self.given_cache_salt and self.extra_key:
            raise InvalidRequestError(
                "extra_key: cache_salt is given too; send one of them", param="extra_key"
            )
        return self

    @property
    def is_batch(self) -> bool:
        """Whether the prompt came as a list of prompts: then the answer is a list too."""
        return _is_batch(self.text, self.input_ids)

    @property
    def prompt(self) -> str | list[int]:
        """The one prompt, as text or token ids."""
        given: Any = self.text if self.text is not None else self.input_ids
        prompt: str | list[int] = given[0] if self.is_batch else given
        return prompt

    @property
    def prompt_field(self) -> str:
        """The field that holds the prompt."""
        return "text" if self.text is not None else "input_ids"

    @property
    def n(self) -> int:
        """Samples wanted."""
        return self.sampling_params.n

    @property
    def priority(self) -> int:
        """Lower is served first, as everywhere else here."""
        return -self.given_priority

    @property
    def cache_salt(self) -> str | None:
        """What keeps its cached blocks apart from others'; an empty one is none, as in SGLang."""
        return self.given_cache_salt or self.extra_key or None

    def engine_params(self) -> SamplingParams:
        """How the engine should sample. Raises `InvalidRequestError` for fields that don't go together."""
        return self.sampling_params.sampling_params(self.top_logprobs_num if self.return_logprob else None)


def parse_generate(body: bytes) -> GenerateBody:
    """The request in `body`. Raises `InvalidRequestError`, as `parse_body` does."""
    return parse_body(GenerateBody, body)


def _is_batch(text: Any, input_ids: Any) -> bool:
    """Whether the prompt comes as a list of prompts."""
    is_list_of_lists = isinstance(input_ids, list) and isinstance(next(iter(input_ids), None), list)
    return is_list_of_lists or isinstance(text, list)
