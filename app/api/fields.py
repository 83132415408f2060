"""Fields of requests that this server has no use for, by the object that they are in, each with its meaning.

The fields that are used are those of the models (`RequestModel`). Of all others there are three kinds:

    known here, asks for nothing                         taken
    known here, asks for what can't be done              an error that names it, or where the answer is the
                                                         same without it: ignored, and told
    unknown                                              ignored, and told

"Known" are the fields of OpenAI's, vLLM's, SGLang's and llama.cpp's servers. What is told is in a header of
the answer, `x-kvbeacon-ignored-fields`, and once in the log. null asks for nothing in any field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Meaning:
    """What a field asks for that isn't served.

    Attributes:
        neutral: values that ask for nothing, besides null.
        others: what becomes of every other value.
        instead: what to send instead, for the error.
    """

    neutral: tuple[Any, ...] = ()
    others: Literal["refused", "ignored", "taken"] = "refused"
    instead: str | None = None

    def asks_for_nothing(self, value: Any) -> bool:
        """Whether `value` is null or neutral. 0 is not false here: `logprobs: 0` asks for the tokens' own."""
        same = (each for each in self.neutral if isinstance(each, bool) == isinstance(value, bool))
        return value is None or value in tuple(same)


Fields = Mapping[str, Meaning]

INFORMS = Meaning(others="taken")
"""Never changes an answer."""
REFUSED = Meaning()
FLAG = Meaning((False,))
EMPTY = Meaning(([], {}, ""))


def _hint(*neutral: Any) -> Meaning:
    """The answer is the same without it."""
    return Meaning(neutral, others="ignored")


def _all(meaning: Meaning, names: str) -> dict[str, Meaning]:
    return dict.fromkeys(names.split(), meaning)


COMPLETION: Fields = {
    **_all(INFORMS, "user metadata safety_identifier prompt_cache_key prediction request_id rid"),
    # vLLM's for tokenizers of another kind and for beams, and SGLang's for its own scheduler.
    **_all(INFORMS, "spaces_between_special_tokens length_penalty early_stopping guided_decoding_backend"),
    **_all(INFORMS, "stream_reasoning log_metrics cache_prompt"),
    "suffix": Meaning(("",)),
    "functions": Meaning(([],), instead="send tools"),
    "function_call": Meaning(("none", "auto"), instead="send tool_choice"),
    "modalities": Meaning((["text"],)),
    # How the server works on it, not what it answers.
    "store": _hint(False),
    "service_tier": _hint("auto", "default"),
    "prompt_cache_retention": _hint("in-memory", "in_memory"),
    # Other outputs and inputs, and what else changes an answer.
    **_all(REFUSED, "audio web_search_options plugins input_ids text input input_embeds prompt_embeds"),
    **_all(REFUSED, "prompt_logprobs logprob_token_ids truncate_prompt_tokens truncation_side"),
    **_all(REFUSED, "thinking_token_budget max_thinking_tokens thinking_budget thinking reasoning"),
    **_all(REFUSED, "guided_whitespace_pattern structural_tag regex ebnf json_schema grammar"),
    **_all(REFUSED, "repetition_detection max_new_tokens min_new_tokens sampling_params"),
    **_all(REFUSED, "bootstrap_host bootstrap_port bootstrap_room"),
    **_all(Meaning((0,)), "mirostat mirostat_mode dry_multiplier xtc_probability top_a"),
    **_all(Meaning((0,)), "smoothing_factor dynatemp_range"),
    "typical_p": Meaning((1,)),
    "sampling_seed": Meaning(instead="send seed"),
    "extra_key": Meaning(("",), instead="send cache_salt"),
    "enable_thinking": Meaning(instead="send it in chat_template_kwargs"),
    **_all(EMPTY, "logits_processors bad_words allowed_token_ids stop_regex lora_path session_params"),
    **_all(EMPTY, "custom_logit_processor custom_params mm_processor_kwargs media_io_kwargs"),
    **_all(EMPTY, "kv_transfer_params ec_transfer_params vllm_xargs token_ids_logprob"),
    **_all(FLAG, "use_beam_search return_tokens_as_token_ids return_hidden_states return_routed_experts"),
    **_all(FLAG, "return_cached_tokens_details"),
}
"""Of chats and texts."""

CHAT: Fields = {
    **COMPLETION,
    "prompt": Meaning(instead="send messages, or send it to /v1/completions"),
    "echo": FLAG,
    "chat_template": REFUSED,
    "system": REFUSED,
}
"""Of chats."""

TEXT: Fields = {
    **COMPLETION,
    "messages": Meaning(instead="send a prompt, or send them to /v1/chat/completions"),
    "top_logprobs": Meaning((0,)),
    "tools": Meaning(([],)),
    "tool_choice": Meaning(("none", "auto")),
    **_all(Meaning((True, False)), "parallel_tool_calls include_reasoning separate_reasoning"),
    "max_completion_tokens": Meaning(instead="send max_tokens"),
    **_all(FLAG, "continue_final_message"),
    **_all(EMPTY, "chat_template_kwargs documents"),
    "chat_template": REFUSED,
    "reasoning_effort": _hint(),
    "verbosity": _hint(),
    "add_generation_prompt": Meaning((True, False)),
}
"""Of texts."""

MESSAGE: Fields = {
    **_all(INFORMS, "id metadata annotations cache_control created_at timestamp reasoning_details"),
    "function_call": Meaning(instead="send tool_calls"),
    "audio": REFUSED,
    "prefix": Meaning((False,), instead="send continue_final_message: true"),
    **_all(Meaning(([],)), "images image_data files attachments"),
}
"""Of a chat's messages, as clients send an answer back."""

TOOL: Fields = {**_all(INFORMS, "cache_control id"), "custom": REFUSED}
"""Of the tools that a chat offers."""

TOOL_CALL: Fields = {**_all(INFORMS, "index cache_control"), "custom": REFUSED}
"""Of an assistant's tool calls."""

PART: Fields = {
    **_all(INFORMS, "id cache_control annotations citations logprobs"),
    **_all(REFUSED, "image image_url image_embeds input_audio audio_url audio_embeds video video_url"),
    **_all(REFUSED, "file document source"),
}
"""Of the parts of a message's content."""

TOKENIZE: Fields = {
    **_all(REFUSED, "input_ids input text truncate_prompt_tokens truncation_side chat_template"),
    "suffix": Meaning(("",)),
}
"""Of texts that are to be tokenized."""

STREAM_OPTIONS: Fields = {"include_obfuscation": _hint(False)}

RESPONSE_FORMAT: Fields = {
    **_all(REFUSED, "regex pattern grammar structures triggers begin end"),
    "strict": Meaning((True, False)),
}

STRUCTURED_OUTPUTS: Fields = {
    **_all(REFUSED, "whitespace_pattern structural_tag"),
    **_all(Meaning((False,)), "disable_additional_properties"),
    # Of vLLM's back ends, and white space is bounded here anyway.
    **_all(INFORMS, "disable_fallback disable_any_whitespace backend"),
}

NATIVE: Fields = {
    **_all(INFORMS, "conversation_id custom_labels external_trace_header log_metrics no_logs received_time"),
    # Hints of a router to another kind of cache, and to another scheduler.
    **_all(INFORMS, "kv_router_hint routing_key"),
    # Of images, and there are none.
    **_all(INFORMS, "max_dynamic_patch min_dynamic_patch image_max_dynamic_patch video_max_dynamic_patch"),
    # Other inputs than one text,
    **_all(Meaning(([],)), "input_embeds image_data video_data audio_data modalities mm_hashes"),
    **_all(Meaning(([],)), "mm_content_hashes multi_item_delimiter_indices token_ids_logprob"),
    **_all(Meaning(({},)), "video_config images_config session_params"),
    **_all(REFUSED, "positional_embed_overrides messages"),
    "prompt": Meaning(instead="send text"),
    # other weights and other sampling,
    **_all(Meaning(("",)), "lora_path lora_id custom_logit_processor"),
    **_all(REFUSED, "max_thinking_tokens"),
    # more in the answer,
    "routed_experts_start_len": Meaning((0,)),
    **_all(FLAG, "use_audio_in_video need_wait_for_mm_inputs require_reasoning return_sampling_mask"),
    **_all(FLAG, "return_hidden_states return_routed_experts return_flat_raw_top_logprobs"),
    **_all(FLAG, "return_flat_raw_top_logprobs_b64 return_indexer_topk return_entropy return_bytes"),
    **_all(FLAG, "return_prompt_token_ids"),
    # a request that outlives its client, prefill on another server,
    "background": FLAG,
    **_all(REFUSED, "bootstrap_host bootstrap_port bootstrap_room bootstrap_pair_key"),
    **_all(REFUSED, "decode_tp_size disagg_prefill_dp_rank"),
    # and what belongs into `sampling_params`.
    **_all(
        Meaning(instead="send it in sampling_params"), "max_new_tokens max_tokens temperature top_p top_k"
    ),
    **_all(Meaning(instead="send it in sampling_params"), "min_p stop n seed regex json_schema ebnf"),
}
"""Of SGLang's native requests."""

NATIVE_SAMPLING: Fields = {
    # Every step's token comes at once.
    **_all(INFORMS, "spaces_between_special_tokens stream_interval"),
    "beam_width": Meaning((1,)),
    "stop_regex": Meaning(("", [])),
    **_all(REFUSED, "structural_tag thinking_budget"),
    "custom_params": Meaning(({},)),
    "max_tokens": Meaning(instead="send max_new_tokens"),
    "min_tokens": Meaning(instead="send min_new_tokens"),
    "seed": Meaning(instead="send sampling_seed"),
}
"""Of their `sampling_params`."""

MESSAGES: Fields = {
    **{name: meaning for name, meaning in COMPLETION.items() if name != "thinking"},
    **_all(INFORMS, "cache_control anthropic_version anthropic_beta betas user_profile_id workspace_id"),
    **_all(INFORMS, "billing_policy stream_options"),
    "service_tier": _hint("auto", "standard_only"),
    "speed": _hint("standard"),
    **_all(_hint(), "inference_geo diagnostics fallback_credit_token verbosity"),
    # What Anthropic's servers do besides answering,
    **_all(EMPTY, "mcp_servers fallbacks"),
    **_all(REFUSED, "container compaction thread"),
    "output_format": Meaning(instead="send output_config.format"),
    # and what belongs to other APIs.
    **_all(Meaning((1,)), "n repetition_penalty"),
    **_all(Meaning((0,)), "min_p presence_penalty frequency_penalty min_tokens top_logprobs"),
    **_all(Meaning((False,)), "logprobs ignore_eos continue_final_message return_token_ids"),
    **_all(Meaning((False,)), "include_stop_str_in_output no_stop_trim add_special_tokens"),
    **_all(Meaning((True,)), "add_generation_prompt include_reasoning separate_reasoning"),
    **_all(Meaning((True,)), "skip_special_tokens"),
    **_all(EMPTY, "logit_bias stop_token_ids documents chat_template_kwargs"),
    **_all(REFUSED, "chat_template structured_outputs guided_json guided_regex guided_choice guided_grammar"),
    "prompt": Meaning(instead="send messages"),
    "stop": Meaning(([],), instead="send stop_sequences"),
    "max_completion_tokens": Meaning(instead="send max_tokens"),
    "response_format": Meaning(({"type": "text"},), instead="send output_config.format"),
    "reasoning_effort": Meaning(instead="send output_config.effort"),
    "parallel_tool_calls": Meaning((True,), instead="send tool_choice.disable_parallel_tool_use"),
}
"""Of Anthropic's messages, as bodies."""

ANTHROPIC_MESSAGE: Fields = {
    **_all(INFORMS, "id type model stop_reason stop_sequence stop_details usage container diagnostics"),
    **_all(INFORMS, "metadata cache_control context_management"),
    "output_config": _hint({}),
    "clear_at": Meaning(("never",)),
    **_all(Meaning(([],), instead="send tool_use blocks"), "tool_calls"),
    "tool_call_id": Meaning(instead="send tool_result blocks"),
    "reasoning_content": Meaning(("",), instead="send thinking blocks"),
}
"""Of one of them, also as clients send an answer back."""

ANTHROPIC_BLOCK: Fields = {
    **_all(INFORMS, "cache_control citations caller toolset_name index annotations"),
    **_all(REFUSED, "source image_url"),
}
"""Of the blocks of their content."""

REDACTED_THINKING: Fields = {"data": _hint(), "cache_control": INFORMS}
"""Of thoughts that only Anthropic's server can read."""

ANTHROPIC_TOOL: Fields = {
    **_all(INFORMS, "cache_control eager_input_streaming"),
    "input_examples": _hint([]),
    "allowed_callers": Meaning((["direct"],)),
    **_all(Meaning(instead="send name, description and input_schema"), "function parameters"),
}
"""Of the tools that they offer."""

THINKING: Fields = {"budget_tokens": _hint()}
"""Of their `thinking`: how long a model thinks, it decides."""

OUTPUT_CONFIG: Fields = {"task_budget": _hint()}
