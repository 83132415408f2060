"""The item that a model is writing: what a stream says of its beginning, its pieces and its end.

message     output_item.added  content_part.added  output_text.delta …  output_text.done
            content_part.done  output_item.done
reasoning   the same with reasoning_text
calls       output_item.added  function_call_arguments.delta …  .done  output_item.done
custom      the same with custom_tool_call_input
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from app.api.responses.call_input import CallInput
from app.api.responses.items import packed_thoughts

Json = dict[str, Any]
Status = Literal["in_progress", "completed", "incomplete"]


class OpenItem(ABC):
    """One item of an output, while it is written.

    Args:
        item_id: its id.
        place: its place in the output.
    """

    def __init__(self, item_id: str, place: int) -> None:
        self._id = item_id
        self._place = place
        self._text = ""

    @abstractmethod
    def shown(self, status: Status) -> Json:
        """The item so far."""

    def begin(self) -> Iterator[Json]:
        """The events that open it."""
        yield self._of_item("added", "in_progress")

    @abstractmethod
    def add(self, text: str, logprobs: Sequence[Json] = ()) -> Iterator[Json]:
        """The events of one more piece."""

    @abstractmethod
    def end(self, status: Status) -> Iterator[Json]:
        """The events that close it."""

    def _of_item(self, what: str, status: Status) -> Json:
        name = f"response.output_item.{what}"
        return {"type": name, "output_index": self._place, "item": self.shown(status)}

    def _event(self, what: str, /, **more: Any) -> Json:
        return {"type": f"response.{what}", "item_id": self._id, "output_index": self._place, **more}


class _PartItem(OpenItem):
    """An item whose text is its content's only part."""

    kind: str
    """The part's."""

    @abstractmethod
    def _part(self) -> Json:
        """The part so far."""

    def _more(self, logprobs: Sequence[Json]) -> Json:
        """What else events of the text have."""
        return {}

    def begin(self) -> Iterator[Json]:
        yield from super().begin()
        yield self._event("content_part.added", content_index=0, part=self._part())

    def add(self, text: str, logprobs: Sequence[Json] = ()) -> Iterator[Json]:
        self._text += text
        yield self._event(f"{self.kind}.delta", content_index=0, delta=text, **self._more(logprobs))

    def end(self, status: Status) -> Iterator[Json]:
        part = self._part()
        more = {name: part[name] for name in self._more(())}
        yield self._event(f"{self.kind}.done", content_index=0, text=self._text, **more)
        yield self._event("content_part.done", content_index=0, part=part)
        yield self._of_item("done", status)


class MessageItem(_PartItem):
    """What the model says. `take_logprobs` adds those of tokens that show no text."""

    kind = "output_text"

    def __init__(self, item_id: str, place: int) -> None:
        super().__init__(item_id, place)
        self._logprobs: list[Json] = []
        self._has_begun = False

    def begin(self) -> Iterator[Json]:
        yield from super().begin()
        self._has_begun = True

    def add(self, text: str, logprobs: Sequence[Json] = ()) -> Iterator[Json]:
        self.take_logprobs(logprobs)
        yield from super().add(text, logprobs)

    def take_logprobs(self, logprobs: Sequence[Json]) -> None:
        """Add the entries of more tokens."""
        self._logprobs += logprobs

    def _more(self, logprobs: Sequence[Json]) -> Json:
        return {"logprobs": list(logprobs)}

    def _part(self) -> Json:
        return {
            "type": "output_text",
            "text": self._text,
            "annotations": [],
            "logprobs": list(self._logprobs),
        }

    def shown(self, status: Status) -> Json:
        content = [self._part()] if self._has_begun or self._text else []
        return {
            "id": self._id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }


class ReasoningItem(_PartItem):
    """What the model thinks. `packs`: whether the thoughts come as `encrypted_content` too."""

    kind = "reasoning_text"

    def __init__(self, item_id: str, place: int, *, packs: bool) -> None:
        super().__init__(item_id, place)
        self._packs = packs

    def _part(self) -> Json:
        return {"type": "reasoning_text", "text": self._text}

    def shown(self, status: Status) -> Json:
        packed = packed_thoughts(self._text) if self._packs and self._text else None
        content = [self._part()] if self._text else []
        return {
            "id": self._id,
            "type": "reasoning",
            "status": status,
            "summary": [],
            "content": content,
            "encrypted_content": packed,
        }


class FunctionCallItem(OpenItem):
    """A call of a function."""

    def __init__(self, item_id: str, place: int, *, call_id: str, name: str, namespace: str | None) -> None:
        super().__init__(item_id, place)
        self._call: Json = {"call_id": call_id, "name": name}
        if namespace is not None:
            self._call["namespace"] = namespace

    def add(self, text: str, logprobs: Sequence[Json] = ()) -> Iterator[Json]:
        self._text += text
        yield self._event("function_call_arguments.delta", delta=text)

    def end(self, status: Status) -> Iterator[Json]:
        name = self._call["name"]
        yield self._event("function_call_arguments.done", name=name, arguments=self._text)
        yield self._of_item("done", status)

    def shown(self, status: Status) -> Json:
        head = {"id": self._id, "type": "function_call", "status": status}
        return {**head, **self._call, "arguments": self._text}


class CustomCallItem(FunctionCallItem):
    """A call of a tool that takes a text."""

    def __init__(self, item_id: str, place: int, **call: Any) -> None:
        super().__init__(item_id, place, **call)
        self._input = CallInput()

    def add(self, text: str, logprobs: Sequence[Json] = ()) -> Iterator[Json]:
        yield from self._show(self._input.push(text))

    def end(self, status: Status) -> Iterator[Json]:
        yield from self._show(self._input.flush())
        yield self._event("custom_tool_call_input.done", input=self._text)
        yield self._of_item("done", status)

    def _show(self, text: str) -> Iterator[Json]:
        if text:
            self._text += text
            yield self._event("custom_tool_call_input.delta", delta=text)

    def shown(self, status: Status) -> Json:
        head = {"id": self._id, "type": "custom_tool_call", "status": status}
        return {**head, **self._call, "input": self._text}
