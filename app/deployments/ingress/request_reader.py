"""Reads a request for an output: its headers, its body, and the tokens of its prompt."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from starlette.requests import Request

from app import hashing
from app.api.bodies import PromptBody
from app.api.chat_body import ChatBody
from app.api.headers import PinnedRank, named_session, named_tenant, pinned_rank
from app.api.openai.prompts import of_prompt
from app.deployments.ingress.http.request_body import read_body
from app.errors import InvalidRequestError, ModelNameError, PromptTooLongError, RequestError, shown
from app.generation import GenerateRequest, SamplingParams
from app.settings.ingress import IngressConfig
from app.text.chat_prompt import TOKENS_ONLY, ChatPrompter, Prompt, PromptSource
from app.text.output.formats import PLAIN_OUTPUT, OutputFormat, OutputFormats
from app.text.tokenizer import Tokenizer
from app.validation import one_of

LONG_BODY = 20_000
"""Bytes of a body that take some 10 ms to parse and tokenize."""

Body = TypeVar("Body", bound=PromptBody)
Result = TypeVar("Result")
Body_co = TypeVar("Body_co", bound=PromptBody, covariant=True)


@dataclass(frozen=True)
class PreparedRequest(Generic[Body_co]):
    """A request that has been read and checked.

    Attributes:
        body: what the client sent.
        generate: what a rank has to do.
        pinned: the only rank that the client allows, if it named one.
        session_id: the session that the client named, if it did; the header's before the body's.
        source: what the prompt's tokens were made of.
        tenant: the tenant's label, if there are tenants.
        ignored_fields: fields of the body that change nothing here, and of which the client must be told.
        output: how a chat's output is read.
    """

    body: Body_co
    generate: GenerateRequest
    pinned: PinnedRank | None
    session_id: str | None
    source: PromptSource = TOKENS_ONLY
    tenant: str | None = None
    ignored_fields: tuple[str, ...] = ()
    output: OutputFormat = PLAIN_OUTPUT


class RequestReader:
    """The one way in for prompts.

    Args:
        config: the largest body, and the header that names the tenant.
        tokenizer: the model's.
        prompter: makes prompts of chats.
        outputs: says how chats' outputs are read.
        model_names: what a request may name as its model.
        max_model_len: tokens of the context.
        tenant_salt_chars: characters of a tenant's salt.
    """

    def __init__(
        self,
        config: IngressConfig,
        tokenizer: Tokenizer,
        prompter: ChatPrompter,
        outputs: OutputFormats,
        *,
        model_names: Sequence[str],
        max_model_len: int,
        tenant_salt_chars: int = 2 * hashing.MAX_SALT_CHARS,
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._prompter = prompter
        self._outputs = outputs
        self._model_names = model_names
        self._max_model_len = max_model_len
        self._tenant_salt_chars = tenant_salt_chars

    async def read(self, request: Request, parse: Callable[[bytes], Body]) -> PreparedRequest[Body]:
        """The request, its body parsed by `parse`.

        Raises:
            RequestError: a header, the body or a field of it is wrong, or the prompt doesn't fit the context.
        """
        (prepared,) = await self.read_all(request, lambda raw: (parse(raw),))
        return prepared

    async def read_all(
        self, request: Request, parse: Callable[[bytes], Sequence[Body]]
    ) -> list[PreparedRequest[Body]]:
        """The requests of a body of which `parse` makes one for each prompt. Raises as `read` does.

        The id of each of several is the answer's with a hyphen and its number.
        """
        # Before the body is read: a request without a tenant should cost nothing.
        tenant = named_tenant(request.headers, self._config.tenant_header)
        session_id = named_session(request.headers)
        bodies = await self.worked_on(
            request, lambda raw: [(body, self._prompt(body)) for body in parse(raw)]
        )
        first, prompt_of_first = bodies[0]
        # An error from now on tells of them too.
        request.state.ignored_fields = (*first.ignored_fields, *prompt_of_first.ignored_fields)
        answer_id = uuid.uuid4().hex
        prepared = []
        for place, (body, prompt) in enumerate(bodies):
            request_id = answer_id if len(bodies) == 1 else f"{answer_id}-{place}"
            try:
                prepared.append(self._prepared(request, request_id, body, prompt, tenant, session_id))
            except RequestError as error:
                raise error if len(bodies) == 1 else of_prompt(error, place) from None
        return prepared

    def _prepared(
        self,
        request: Request,
        request_id: str,
        body: Body,
        prompt: Prompt,
        tenant: str | None,
        session_id: str | None,
    ) -> PreparedRequest[Body]:
        self._check_prompt(body, prompt.token_ids)
        params, output = self._output(body, prompt)
        generate = GenerateRequest(
            request_id,
            prompt.token_ids,
            params,
            cache_salt=self._cache_salt(tenant, body.cache_salt),
            n=body.n,
            priority=body.priority,
        )
        pinned = pinned_rank(request.headers, body.rank_fields)
        return PreparedRequest(
            body,
            generate,
            pinned,
            session_id or body.session_id,
            source=prompt.source,
            tenant=None if tenant is None else hashing.tenant_label(tenant),
            ignored_fields=(*body.ignored_fields, *prompt.ignored_fields),
            output=output,
        )

    def _output(self, body: PromptBody, prompt: Prompt) -> tuple[SamplingParams, OutputFormat]:
        """How the engine samples, and how its output is read."""
        if not isinstance(body, ChatBody):
            return body.engine_params(), PLAIN_OUTPUT
        wish = body.wish()
        params = body.engine_params()
        output = self._outputs.of(
            wish,
            is_thinking=prompt.is_thinking,
            separates=body.splits_thoughts,
            wanted=params.structured_output,
        )
        return self._outputs.constrained(params, wish, output), output

    def _cache_salt(self, tenant: str | None, given: str | None) -> str | None:
        return given if tenant is None else hashing.tenant_salt(tenant, given, self._tenant_salt_chars)

    def check_model(self, name: str | None) -> None:
        """Raises `ModelNameError` if a request names another model than the served one."""
        if name is not None:
            self.check_model_name(name)

    def check_model_name(self, name: str) -> None:
        """Raises `ModelNameError` unless `name` is the served model's."""
        if name not in self._model_names:
            raise ModelNameError(f"model = {shown(name)}; served here: {one_of(self._model_names)}")

    async def worked_on(self, request: Request, work: Callable[[bytes], Result]) -> Result:
        """What `work` makes of a request's body; of a long one in a thread, off the event loop.

        Raises:
            RequestError: the body can't be read, or what `work` raises.
        """
        raw = await read_body(request, self._config.max_request_bytes)
        return work(raw) if len(raw) < LONG_BODY else await asyncio.to_thread(work, raw)

    def chat_prompt(self, body: ChatBody) -> Prompt:
        """The prompt of a chat; may take long for a long one."""
        return self._prompter.prompt(body.chat())

    def _prompt(self, body: PromptBody) -> Prompt:
        if isinstance(body, ChatBody):
            return self.chat_prompt(body)
        if isinstance(body.prompt, str):
            # A chat template writes its own beginning of the text; here the tokenizer puts it there.
            add_special_tokens = body.add_special_tokens is not False
            token_ids = self._tokenizer.encode(body.prompt, add_special_tokens)
            return Prompt(token_ids, source=PromptSource(body.prompt))
        return Prompt(body.prompt)

    def _check_prompt(self, body: PromptBody, token_ids: list[int]) -> None:
        self.check_model(body.model)
        if not token_ids:
            message = f"{body.prompt_field}: no tokens; at least one is needed"
            raise InvalidRequestError(message, param=body.prompt_field)
        if len(token_ids) > self._max_model_len:
            # The ranks would only say the same, after all of it was hashed.
            message = f"the prompt has {len(token_ids)} tokens; the context is {self._max_model_len}"
            raise PromptTooLongError(message, param=body.prompt_field)
