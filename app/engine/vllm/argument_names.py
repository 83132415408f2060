"""What the installed vLLM is: its engine arguments, and the device for which it was built."""

from __future__ import annotations

from dataclasses import fields

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform

ENGINE_ARGUMENTS = frozenset(field.name for field in fields(AsyncEngineArgs))
DEVICE: str = current_platform.device_type
"""`cpu`, `cuda` or another."""
