"""What a request's client has received, from whichever ranks: enough to go on at another one."""

from __future__ import annotations

from dataclasses import replace

from app.generation import GenerateRequest, TokenChunk


class Progress:
    """The tokens of each sample that goes on.

    Args:
        request: what the client wants.
    """

    def __init__(self, request: GenerateRequest) -> None:
        self._request = request
        self._outputs: dict[int, list[int]] = {index: [] for index in range(request.n)}
        """Of samples that haven't ended."""
        self._first: TokenChunk | None = None

    @property
    def has_begun(self) -> bool:
        """Whether some rank has sent something, which must not come again."""
        return self._first is not None

    @property
    def is_finished(self) -> bool:
        """Whether every sample has ended."""
        return not self._outputs

    @property
    def longest_output(self) -> list[int]:
        """The output of the sample that has the most; the samples that have ended don't count."""
        return max(self._outputs.values(), key=len, default=[])

    @property
    def rest(self) -> GenerateRequest:
        """What a rank has to do now; it takes over no list that changes later."""
        if not self.has_begun:
            return self._request
        earlier = {index: tuple(output) for index, output in self._outputs.items()}
        return replace(self._request, earlier_outputs=earlier)

    def take(self, chunk: TokenChunk) -> TokenChunk:
        """Add a chunk. Returns it as the client should see it: what it says of the prompt never changes.

        A rank that goes on with a request may have more or less of its prompt cached than the first one had.
        """
        if self._first is None:
            self._first = chunk
        if chunk.finish_reason is None:
            self._outputs[chunk.index] += chunk.token_ids
        else:
            del self._outputs[chunk.index]
        num_prompt, num_cached = self._first.num_prompt_tokens, self._first.num_cached_tokens
        if (chunk.num_prompt_tokens, chunk.num_cached_tokens) == (num_prompt, num_cached):
            return chunk
        return replace(chunk, num_prompt_tokens=num_prompt, num_cached_tokens=num_cached)
