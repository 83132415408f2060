"""The HTTP side."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from app.settings.access import AccessConfig
from app.settings.base import PerNode, PositiveFloat, PositiveInt, Settings

_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")
"""A token as RFC 9110 has it (5.6.2)."""

_TAKEN_HEADERS = re.compile(
    # What connections, proxies and HTTP itself set or remove (RFC 9110, 7.6.1 and 7.6.3; RFC 7239),
    r"connection|keep-alive|te|trailer|transfer-encoding|upgrade|host|expect|date|via|forwarded|proxy-.*"
    r"|x-forwarded-(for|host|port|proto)"
    # what clients send about themselves and their bodies,
    r"|content-.*|accept|accept-.*|authorization|cookie|origin|referer|user-agent"
    # and what Ray Serve or the API reads: the first of them is in logs and answers.
    r"|x-request-(id|timeout-seconds|disconnect-disabled)|x-session-id|serve-multiplexed-model-id"
    r"|x-data-parallel-rank|x-api-key|x-kvbeacon-.*"
)
"""Headers that already have another meaning, in lower case and with hyphens."""


_ORIGIN = re.compile(r"https?://[A-Za-z0-9._\-\[\]:]+")
"""What browsers send as Origin (RFC 6454, 6.2), of pages that come by HTTP."""


LinePattern = Annotated[str, Field(min_length=1, max_length=256)]


class IngressConfig(Settings):
    """The HTTP side."""

    num_ingresses: PositiveInt = Field(1, description="Ingress replicas.")
    max_ingresses_per_node: PerNode | None = Field(
        None, description="Ingresses on one node at most; see `routing.max_routers_per_node`."
    )
    max_retries: int = Field(
        3,
        ge=0,
        description="Other ranks tried for a request whose rank was lost, before or after its first token. "
        "What a rank that is replaced or no longer needed hands over isn't counted.",
    )
    rank_wait_s: float = Field(
        30.0,
        ge=0,
        description="Seconds that a request waits for a rank while none can take it, new or in the middle of "
        "its answer; then it ends with an error.",
    )
    max_request_bytes: PositiveInt = Field(4 * 2**20, description="Largest request body in bytes.")
    body_timeout_s: PositiveFloat = Field(
        60.0, description="Seconds that a request's body may take to come; then it is answered 408."
    )
    request_timeout_s: PositiveFloat | None = Field(
        None,
        description="Seconds that a request for an output may take in all; its client may say less in the "
        "header `x-kvbeacon-timeout-s`. null: any time.",
    )
    max_waiting_requests: PositiveInt = Field(
        4096,
        description="Requests of the whole deployment that have come and have no output yet; each ingress "
        "takes an equal share of them. A request beyond these is answered 429.",
    )
    access: AccessConfig = AccessConfig()
    tenant_header: str | None = Field(
        None,
        description="The request header by which a trusted gateway names the tenant; without it a prompt is "
        "answered 400. Tenants share no cached blocks. null: there are no tenants.",
    )

    cors_origins: tuple[str, ...] = Field(
        (),
        description="Origins of web pages whose scripts may read answers (`https://example.org`, with a port "
        "if it isn't the usual one), or `*` for all. None: no other page's.",
    )
    dropped_system_lines: Annotated[tuple[LinePattern, ...], Field(max_length=32)] = Field(
        ("x-anthropic-billing-header:*",),
        description="Patterns of lines that are left out of chats' system prompts, because they are other "
        "ones with every request; `*` stands for any characters, and the whole line must match. By default "
        "the line that Claude Code puts there. []: none is left out.",
    )
    stored_responses: int = Field(
        1000,
        ge=0,
        strict=True,
        description="Responses of `/v1/responses` kept in memory, the last used, so that requests can go on "
        "from them (`previous_response_id`); 0: none. Only where `num_ingresses` is 1: each ingress would "
        "know only its own. They are lost when the ingress is replaced.",
    )
    stored_responses_bytes: PositiveInt = Field(
        64 * 2**20, description="Bytes of JSON that these responses and their inputs have at most, in all."
    )
    drain_timeout_s: float = Field(
        300.0, ge=0, description="Seconds that an ingress which is replaced may go on with its answers."
    )
    allow_flush_cache: bool = Field(
        False, description="Whether `/flush_cache` empties every rank's cache for any client, as in SGLang."
    )

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [each for each in value if each != "*" and not _ORIGIN.fullmatch(each)]
        if wrong:
            raise ValueError(
                f"{wrong[0]!r}: * or http://host or https://host is needed, with a port or without"
            )
        return value

    @field_validator("dropped_system_lines")
    @classmethod
    def _match_some_lines(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            if "\n" in pattern or "\r" in pattern:
                raise ValueError(f"{pattern!r}: a pattern is of one line")
            if not pattern.replace("*", "").strip():
                raise ValueError(f"{pattern!r}: text besides * is needed, or it would match every line")
        return value

    @field_validator("tenant_header")
    @classmethod
    def _names_a_header_of_its_own(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not _HEADER_NAME.fullmatch(value):
            raise ValueError("a header's name has 1 to 64 letters, digits and !#$%&'*+-.^_`|~")
        if _TAKEN_HEADERS.fullmatch(value.lower().replace("_", "-")):
            raise ValueError("this header means something else; give one that only the gateway sets")
        return value
