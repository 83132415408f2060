"""The body of SGLang's `POST /generate` (`GenerateReqInput`), as far as it is served: one prompt."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from app.api.fields import NATIVE, Fields
from app.api.headers import MAX_NAME_CHARS, NAME
from app.api.native.sampling import NativeSampling
from app.api.request_model import Int, RequestBody, TokenIds, parse_body
from app.errors import InvalidRequestError
from app.generation import MAX_LOGPROBS, SamplingParams
from app.hashing import MAX_TENANT_SALT_CHARS

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


def _is_name(value: str) -> str:
    if not NAME.fullmatch(value):
        allowed = "1 to {most} visible ASCII characters without commas are allowed"
        raise PydanticCustomError("name", allowed, {"most": MAX_NAME_CHARS})
    return value


class GenerateBody(RequestBody):
    """The body of POST /generate.

    A list of one prompt is taken too, and its answer is a list; longer ones are refused, as each prompt may
    belong to another rank.

    Attributes:
        given_priority: as in SGLang, higher is served first.
        incremental_streaming_output: each event of a stream has only what is new, as if SGLang had been
            started with its flag of this name; SGLang itself ignores the field in a request.
    """

    unserved: ClassVar[Fields] = NATIVE

    text: str | list[str] | None = None
    input_ids: TokenIds | list[TokenIds] | None = None
    sampling_params: NativeSampling = NativeSampling()
    rid: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    model: str | None = None
    stream: bool = False
    incremental_streaming_output: bool = False
    return_logprob: bool = False
    logprob_start_len: Int = -1
    top_logprobs_num: Int = Field(0, ge=0, le=MAX_LOGPROBS)
    return_text_in_logprobs: bool = False
    given_priority: Int = Field(0, alias="priority", gt=-(2**31), lt=2**31)
    session_id: Annotated[str, AfterValidator(_is_name)] | None = Field(None, repr=False)
    given_cache_salt: Salt | None = Field(None, alias="cache_salt", repr=False)
    extra_key: Salt | None = Field(None, repr=False)

    @classmethod
    def unwrapped(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The fields without the lists around them that belong to a list of one prompt."""
        if not _is_batch(values.get("text"), values.get("input_ids")):
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

    @property
    def keeps_stop(self) -> bool:
        """Whether the text has the stop string that ended it."""
        return self.sampling_params.no_stop_trim

    @property
    def add_special_tokens(self) -> bool:
        """Whether the tokenizer adds its own to the prompt: as in SGLang always."""
        return True

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
