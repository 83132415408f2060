"""What every body that holds a conversation can say of it, whatever its API."""

from __future__ import annotations

from abc import ABC, abstractmethod

from app.generation import SamplingParams
from app.text.chat_prompt import Chat
from app.text.output.formats import CallWish


class ChatBody(ABC):
    """A body whose prompt a chat template writes, and whose output may have thoughts and calls.

    Of another API than OpenAI's chats, it is translated into these: there is one way to write prompts, and
    one to find and constrain calls. Its errors name its own fields.
    """

    @abstractmethod
    def chat(self) -> Chat:
        """The conversation. Raises `InvalidRequestError` for a message that is none."""

    @abstractmethod
    def wish(self) -> CallWish:
        """The calls that it allows or wants. Raises `InvalidRequestError` for a tool that isn't there."""

    @abstractmethod
    def engine_params(self) -> SamplingParams:
        """How the engine should sample. Raises `InvalidRequestError` for fields that don't go together."""

    @property
    def splits_thoughts(self) -> bool:
        """Whether thoughts are split from what is said."""
        return True
