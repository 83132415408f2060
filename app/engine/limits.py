"""Which prompts can be served at all, and how much output they leave room for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from app.errors import InvalidRequestError, PromptTooLongError


@dataclass(frozen=True, slots=True)
class Limits:
    """What model and cache allow one request.

    Attributes:
        max_model_len: tokens of prompt and output together.
        num_blocks, block_size: the KV cache, all of which one request may fill.
        vocab_size: token ids are below this.
    """

    max_model_len: int
    num_blocks: int
    block_size: int
    vocab_size: int

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of a prompt at most: one must be left for the output, and the cache must hold all."""
        return min(self.max_model_len - 1, self.num_blocks * self.block_size)

    def check_prompt(self, token_ids: Sequence[int]) -> None:
        """Refuse what could never be computed.

        Raises:
            InvalidRequestError: no tokens, or an unknown one.
            PromptTooLongError: longer than the context, or than the cache can ever hold.
        """
        num_tokens, cache_tokens = len(token_ids), self.num_blocks * self.block_size
        if num_tokens == 0:
            raise InvalidRequestError("the prompt has no tokens; at least 1 is needed", param="prompt")
        if num_tokens >= self.max_model_len:
            raise PromptTooLongError(
                f"the prompt has {num_tokens} tokens; at most {self.max_model_len - 1} leave room for an "
                f"output token in the context of {self.max_model_len}",
                param="prompt",
            )
        if num_tokens > cache_tokens:
            raise PromptTooLongError(
                f"the prompt has {num_tokens} tokens; the KV cache holds {cache_tokens} "
                f"({self.num_blocks} blocks of {self.block_size})",
                param="prompt",
            )
        self.check_known("prompt", token_ids)

    def check_known(self, field: str, token_ids: Collection[int]) -> None:
        """Refuse token ids that the model doesn't have.

        Raises:
            InvalidRequestError: an unknown one is in `token_ids`, the request's `field`.
        """
        lowest, highest = min(token_ids, default=0), max(token_ids, default=0)
        if lowest < 0 or highest >= self.vocab_size:
            raise InvalidRequestError(
                f"the {field} has tokens from {lowest} to {highest}; allowed: 0 to {self.vocab_size - 1}",
                param=field,
            )

    def max_output_tokens(self, num_prompt_tokens: int) -> int:
        """Output that fits; the last token's keys and values are never stored, so it takes no place."""
        in_cache = self.num_blocks * self.block_size - num_prompt_tokens + 1
        return min(self.max_model_len - num_prompt_tokens, in_cache)
