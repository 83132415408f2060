"""What answers behind every route: reads a request, has a rank chosen for it, and starts its output there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from ray.serve.handle import DeploymentHandle
from starlette.requests import Request

from app.api.bodies import PromptBody
from app.config import AppConfig
from app.deployments.background import BatchSender
from app.deployments.ingress.access.gate import Entrance
from app.deployments.ingress.dispatch.dispatcher import Dispatcher
from app.deployments.ingress.dispatch.patient_routers import Routers
from app.deployments.ingress.dispatch.rank_search import SearchLimits
from app.deployments.ingress.dispatch.rank_stream import RankStream
from app.deployments.ingress.dispatch.starting_routers import StartingRouters
from app.deployments.ingress.ignored_fields import IgnoredFields
from app.deployments.ingress.misses.cache_report import CacheReport
from app.deployments.ingress.misses.prompt_notes import PromptNotes
from app.deployments.ingress.native.rank_control import RankControl
from app.deployments.ingress.rank_watch import RankWatch
from app.deployments.ingress.request_reader import Body_co, PreparedRequest, RequestReader
from app.deployments.ingress.stored_responses import StoredResponses
from app.deployments.messages import Json
from app.deployments.rank_client import RankClient
from app.deployments.rank_directory import RankDirectory
from app.deployments.router_client import RouterClient
from app.errors import PromptTooLongError, UnknownRankError
from app.events.endpoints import KvEvents
from app.generation import GenerateRequest
from app.hashing import MAX_SALT_CHARS, WORKER_SALT_CHARS
from app.models.context import context_length, resolve_max_model_len
from app.models.store import resolve_model, served_name, served_names
from app.text.chat_prompt import ChatPrompter
from app.text.dropped_lines import DroppedLines
from app.text.output.formats import OutputFormats
from app.text.text_stream import TextStream
from app.text.tokenizer import Tokenizer

POLL_TIMEOUT_S = 0.75
"""Seconds that a rank gets to describe itself; SGLang's router waits 2 s in all for `/server_info`."""

OUTCOMES_INTERVAL_S = 0.2
"""Seconds for which outcomes of requests are collected before the routers receive them."""

Body = TypeVar("Body", bound=PromptBody)
Dispatched = TypeVar("Dispatched")


class Service:
    """The ingress without its HTTP.

    It holds no thread, socket or file, so it has nothing to stop. Outcomes of the last `OUTCOMES_INTERVAL_S`
    seconds, which it may lose at its end, only miss in the routers' statistics.

    Args:
        config: the whole deployment's.
        events: what its `kv_events_config` asks for.
        router: handle of the `Router` deployment.
        ranks: handle of the `DPRank` deployment.

    Attributes:
        config, events: the present ones.
        max_model_len: tokens of the context.
        tokenizer: the model's.
        entrance: lets requests in.
        reader: the one way in for prompts.
        ignored: tells which fields were ignored.
        responses: those that requests can go on from; None where none are stored.
        routers, directory, control: ask all routers, and all ranks.
    """

    def __init__(
        self,
        config: AppConfig,
        events: KvEvents,
        router: DeploymentHandle[Any],
        ranks: DeploymentHandle[Any],
    ) -> None:
        self.routers = RouterClient(router)
        self._ranks = RankClient(ranks)
        self.directory = RankDirectory(self._ranks, timeout_s=POLL_TIMEOUT_S)
        self._outcomes = BatchSender(self.routers.record_outcomes, interval_s=OUTCOMES_INTERVAL_S)
        self.start(config, events)

    def start(self, config: AppConfig, events: KvEvents) -> None:
        """Make what answers by these settings; again, with other settings, it replaces all of it."""
        self.entrance = Entrance(config.ingress)
        model_dir = resolve_model(config.model, weights=False)
        self.config = config
        self.events = events
        self.max_model_len = resolve_max_model_len(config.model.max_model_len, context_length(model_dir))
        self.tokenizer = Tokenizer.from_folder(model_dir)
        self.control = RankControl(self._ranks, self.directory, dp_size=config.expected_dp_size)
        self.ignored = IgnoredFields()
        self.responses = StoredResponses.by(config.ingress)
        self.reader = RequestReader(
            config.ingress,
            self.tokenizer,
            ChatPrompter(
                self.tokenizer,
                config.model,
                DroppedLines(config.ingress.dropped_system_lines),
                most=self.max_model_len,
            ),
            # A worker by URL may have no grammars, or other ones.
            OutputFormats(self.tokenizer, config.model, constrains=config.remote_ranks is None),
            model_names=self.model_names,
            max_model_len=self.max_model_len,
            # Workers take tenants' salts in bodies, where they may be no longer than others.
            tenant_salt_chars=WORKER_SALT_CHARS if config.remote_ranks else 2 * MAX_SALT_CHARS,
        )
        self._notes = PromptNotes(
            self.routers,
            self.tokenizer,
            block_size=config.engine.cache.block_size,
            num_routers=config.routing.num_routers,
            with_texts=config.routing.misses.texts,
        )
        self._dispatcher = Dispatcher(
            self._choosing_routers(config),
            self._ranks,
            self._outcomes.put,
            model=config.model.path,
            block_size=config.engine.cache.block_size,
            limits=SearchLimits(config.ingress.max_retries, config.ingress.rank_wait_s),
        )
        self._watch = RankWatch(
            self._dispatcher.live,
            self.routers,
            self._ranks,
            model=config.model.path,
            drain_timeout_s=config.engine.drain_timeout_s,
        )

    def _choosing_routers(self, config: AppConfig) -> Routers:
        if config.autoscaling is None:
            return self.routers
        timeout_s = config.autoscaling.start_timeout_s
        return StartingRouters(self.routers, self._ranks, start_timeout_s=timeout_s)

    @property
    def model_names(self) -> tuple[str, ...]:
        """What a request may name as its model."""
        return served_names(self.config.model)

    @property
    def model_name(self) -> str:
        """The name that answers have."""
        return served_name(self.config.model)

    async def read(
        self, request: Request, parse: Callable[[bytes], Body], *, may_be_long: bool = False
    ) -> PreparedRequest[Body]:
        """The request, its body parsed by `parse`. Raises `RequestError`, as `RequestReader.read` does."""
        return await self.reader.read(request, parse, may_be_long=may_be_long)

    async def begin(self, prepared: PreparedRequest[PromptBody]) -> tuple[RankStream, CacheReport]:
        """The request's output, and what its client is told of its cached tokens.

        Raises:
            RequestError: no rank took it, its time is over, or its key has no tokens left.
        """
        visit = prepared.visit
        visit.charge_prompt(len(prepared.generate.prompt_token_ids))
        notes = self._notes.of(prepared)
        start = partial(
            self._dispatcher.start,
            on_choice=notes.on_choice,
            on_tokens=visit.charge_output,
            deadline=visit.deadline,
        )
        stream = await _dispatch(prepared, start)
        visit.begin_output()
        notes.report.begin(stream)
        return stream, notes.report

    async def explain(self, prepared: PreparedRequest[PromptBody]) -> Json:
        """Which rank the request would go to now, and why. Raises `RequestError`: to none."""
        return await _dispatch(prepared, self._dispatcher.explain)

    def text_streams(self, prepared: PreparedRequest[PromptBody]) -> list[TextStream]:
        """The text of each sample."""
        params, keep_stop = prepared.generate.params, prepared.body.keeps_stop
        given = (params.stop, params.min_tokens, params.skip_special_tokens)
        return [self.tokenizer.text_stream(*given, keep_stop=keep_stop) for _ in range(prepared.body.n)]

    def headers(self, prepared: PreparedRequest[Body_co]) -> Mapping[str, str]:
        """What an answer's headers tell of its request."""
        return self.ignored.headers(prepared.ignored_fields)


async def _dispatch(
    prepared: PreparedRequest[PromptBody],
    dispatch: Callable[[GenerateRequest, int | None, str | None], Awaitable[Dispatched]],
) -> Dispatched:
    """What `dispatch` returns. An error of what the client named has the name that it gave."""
    pinned = prepared.pinned
    try:
        return await dispatch(prepared.generate, pinned and pinned.rank, prepared.session_id)
    except UnknownRankError as error:
        raise error if pinned is None else error.named(pinned.rank, pinned.field) from None
    except PromptTooLongError as error:
        error.param = prepared.body.prompt_field
        raise
