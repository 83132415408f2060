"""The HTTP side: OpenAI's API, SGLang's own and the descriptors, in front of the routers and the ranks.

Ray pickles the class and its routes by value while the module is still being imported. So annotations here
aren't postponed (FastAPI couldn't resolve their names then), and helpers live in other modules. Every answer
carries `x-request-id`, the client's own or a new one: Ray Serve sees to it.
"""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.api.bodies import PromptBody, parse_any
from app.api.native.answer import NativeShape
from app.api.native.request import parse_generate
from app.api.openai.requests import ChatRequest, TextRequest, parse_chat, parse_text
from app.api.openai.responses import AnswerShape, error_headers, error_json
from app.config import AppConfig
from app.deployments.background import BatchSender
from app.deployments.ingress.answer import AnswerEvents, stream_answer, whole_answer
from app.deployments.ingress.dispatch.dispatcher import Dispatcher
from app.deployments.ingress.dispatch.patient_routers import Routers
from app.deployments.ingress.dispatch.rank_search import SearchLimits
from app.deployments.ingress.dispatch.rank_stream import RankStream
from app.deployments.ingress.dispatch.starting_routers import StartingRouters
from app.deployments.ingress.health import health_answer
from app.deployments.ingress.http_rules import HttpRules, replica_settings
from app.deployments.ingress.ignored_fields import IgnoredFields
from app.deployments.ingress.misses.cache_report import CacheReport
from app.deployments.ingress.misses.misses_answer import misses_answer, wanted_rows
from app.deployments.ingress.misses.prompt_notes import PromptNotes
from app.deployments.ingress.native.answer import stream_native, whole_native
from app.deployments.ingress.native.loads import check_loads_query, loads_answer, wanted_rank
from app.deployments.ingress.native.rank_control import RankControl, flush_wait
from app.deployments.ingress.rank_watch import RankWatch
from app.deployments.ingress.receipts import audit_answer, decisions_answer, named_request
from app.deployments.ingress.request_reader import PreparedRequest, RequestReader
from app.deployments.ingress.server_info import model_card, model_info, present_dp_size, server_info
from app.deployments.messages import Json
from app.deployments.rank_client import RankClient
from app.deployments.rank_directory import RankDirectory
from app.deployments.router_client import RouterClient
from app.deployments.starting import says_why
from app.errors import (
    InvalidRequestError,
    NotAllowedError,
    PromptTooLongError,
    RequestError,
    UnknownRankError,
)
from app.events.endpoints import KvEvents
from app.generation import GenerateRequest
from app.hashing import MAX_SALT_CHARS, WORKER_SALT_CHARS
from app.models.context import context_length, resolve_max_model_len
from app.models.store import resolve_model, served_name, served_names
from app.settings.ingress import IngressConfig
from app.text.chat_prompt import ChatPrompter
from app.text.output.formats import OutputFormats
from app.text.text_stream import TextStream
from app.text.tokenizer import Tokenizer

logger = logging.getLogger("ray.serve")

POLL_TIMEOUT_S = 0.75
"""Seconds that a rank gets to describe itself; SGLang's router waits 2 s in all for `/server_info`."""

OUTCOMES_INTERVAL_S = 0.2
"""Seconds for which outcomes of requests are collected before the routers receive them."""

Dispatched = TypeVar("Dispatched")

api = FastAPI(title="kvbeacon", docs_url=None, redoc_url=None, openapi_url=None)
api.add_middleware(HttpRules, settings=replica_settings)


@api.exception_handler(RequestError)
async def _request_error(request: Request, error: RequestError) -> JSONResponse:
    return JSONResponse(error_json(error), status_code=error.status, headers=error_headers(error))


@api.exception_handler(ClientDisconnect)
async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)  # nginx's number for it; no client reads this


@api.exception_handler(HTTPException)
async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    message = f"{request.method} {request.url.path}: {error.detail}"
    answer = error_json(InvalidRequestError(message, code="not_found" if error.status_code == 404 else None))
    return JSONResponse(answer, status_code=error.status_code, headers=error.headers)


@api.exception_handler(Exception)
async def _internal_error(request: Request, error: Exception) -> JSONResponse:
    logger.exception("request %s failed", request.headers.get("x-request-id"), exc_info=error)
    failure = {"message": "internal error; the server's log has more", "type": "server_error"}
    answer = {"error": {**failure, "param": None, "code": "internal_error"}}
    return JSONResponse(answer, status_code=500)


@serve.ingress(api)
class Ingress:
    """Reads a request, has a router choose its rank, and streams from that rank.

    It holds no thread, socket or file, so it has nothing to stop. Outcomes of the last `OUTCOMES_INTERVAL_S`
    seconds, which it may lose at its end, only miss in the routers' statistics.

    Args:
        config: the whole deployment's.
        events: what its `kv_events_config` asks for.
        router: handle of the `Router` deployment.
        ranks: handle of the `DPRank` deployment.
    """

    def __init__(
        self,
        config: AppConfig,
        events: KvEvents,
        router: DeploymentHandle[Any],
        ranks: DeploymentHandle[Any],
    ) -> None:
        self._routers = RouterClient(router)
        self._ranks = RankClient(ranks)
        self._directory = RankDirectory(self._ranks, timeout_s=POLL_TIMEOUT_S)
        self._outcomes = BatchSender(self._routers.record_outcomes, interval_s=OUTCOMES_INTERVAL_S)
        with says_why("Ingress"):
            self.start(config, events)

    def start(self, config: AppConfig, events: KvEvents) -> None:
        """Make what answers by these settings; again, with other settings, it replaces all of it."""
        model_dir = resolve_model(config.model, weights=False)
        self._config = config
        self._events = events
        self._max_model_len = resolve_max_model_len(config.model.max_model_len, context_length(model_dir))
        self._tokenizer = Tokenizer.from_folder(model_dir)
        self._control = RankControl(self._ranks, self._directory, dp_size=config.expected_dp_size)
        self._ignored = IgnoredFields()
        self._reader = RequestReader(
            config.ingress,
            self._tokenizer,
            ChatPrompter(self._tokenizer, config.model),
            # A worker by URL may have no grammars, or other ones.
            OutputFormats(self._tokenizer, config.model, constrains=config.remote_ranks is None),
            model_names=served_names(config.model),
            max_model_len=self._max_model_len,
            # Workers take tenants' salts in bodies, where they may be no longer than others.
            tenant_salt_chars=WORKER_SALT_CHARS if config.remote_ranks else 2 * MAX_SALT_CHARS,
        )
        self._notes = PromptNotes(
            self._routers,
            self._tokenizer,
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
            self._routers,
            self._ranks,
            model=config.model.path,
            drain_timeout_s=config.engine.drain_timeout_s,
        )

    @property
    def http_settings(self) -> IngressConfig:
        """The settings by which `HttpRules` goes."""
        return self._config.ingress

    def _choosing_routers(self, config: AppConfig) -> Routers:
        if config.autoscaling is None:
            return self._routers
        timeout_s = config.autoscaling.start_timeout_s
        return StartingRouters(self._routers, self._ranks, start_timeout_s=timeout_s)

    @api.post("/v1/chat/completions")
    async def chat_completions(self, request: Request) -> Response:
        """A conversation's next message."""
        return await self._complete(request, parse_chat)

    @api.post("/v1/completions")
    async def completions(self, request: Request) -> Response:
        """A text's continuation."""
        return await self._complete(request, parse_text)

    @api.post("/generate")
    @api.put("/generate")
    async def generate(self, request: Request) -> Response:
        """A prompt's continuation, in SGLang's shape."""
        prepared = await self._reader.read(request, parse_generate)
        body, params = prepared.body, prepared.generate.params
        eos_token_ids = () if params.ignore_eos else self._tokenizer.eos_token_ids
        shape = NativeShape(
            request_id=prepared.generate.request_id,
            rid=body.rid,
            num_samples=body.n,
            is_list=body.is_batch,
            ending_token_ids=frozenset((*eos_token_ids, *params.stop_token_ids)),
            num_likeliest=params.logprobs,
            name_of=self._token_name if body.return_text_in_logprobs else None,
            is_incremental=body.incremental_streaming_output,
        )
        texts = self._text_streams(prepared)
        stream, report = await self._start(prepared)
        headers = self._ignored.headers(prepared.ignored_fields) | report.header()
        if body.stream:
            return AnswerEvents(stream_native(shape, stream, *texts), stream, headers)
        answer = await whole_native(shape, stream, *texts)
        return JSONResponse(answer, headers={"x-dp-rank": str(stream.rank), **headers})

    @api.get("/v1/loads")
    async def loads(self, request: Request) -> Json:
        """Every rank's load, in SGLang's shape."""
        query = request.query_params
        check_loads_query(query.get("include"), query.get("format"))
        ranks = await self._directory.poll()
        dp_size = max(self._config.largest_dp_size, present_dp_size(self._config, ranks))
        return loads_answer(ranks, wanted_rank(query.get("dp_rank"), dp_size))

    @api.get("/health_generate")
    async def health_generate(self) -> Response:
        """200 when some rank computes a token now, or none runs until there is a request; else 503."""
        report, status = await self._control.probe()
        return JSONResponse(report, status_code=status)

    @api.get("/flush_cache")
    @api.post("/flush_cache")
    async def flush_cache(self, request: Request) -> Response:
        """Every rank forgets its cached blocks; 503 when some rank couldn't."""
        if not self._config.ingress.allow_flush_cache:
            raise NotAllowedError("/flush_cache: this deployment has ingress.allow_flush_cache: false")
        ranks = await self._control.flush(flush_wait(request.query_params.get("timeout")))
        success = all(each["flushed"] for each in ranks)
        return JSONResponse({"success": success, "ranks": ranks}, status_code=200 if success else 503)

    @api.get("/v1/models")
    async def models(self) -> Json:
        """What can be named in a request's `model`."""
        names = served_names(self._config.model)
        cards = [model_card(self._config, self._max_model_len, name) for name in names]
        return {"object": "list", "data": cards}

    @api.get("/v1/models/{name:path}")
    async def model(self, name: str) -> Json:
        """The one model, by one of its names."""
        self._reader.check_model_name(name)
        return model_card(self._config, self._max_model_len, name)

    @api.get("/health")
    async def health(self) -> Response:
        """200 when some router has a rank for requests, else 503; and which ranks can't, and why not."""
        views = await self._routers.views(self._config.routing.num_routers)
        answer, status = health_answer(views, self._config.expected_dp_size)
        return JSONResponse(answer, status_code=status)

    @api.get("/server_info")
    @api.get("/get_server_info")
    async def server_info(self) -> Json:
        """The deployment's descriptor."""
        return server_info(self._config, self._events, self._max_model_len, await self._directory.poll())

    @api.get("/model_info")
    @api.get("/get_model_info")
    async def model_info(self) -> Json:
        """What is served."""
        return model_info(self._config, self._max_model_len)

    @api.get("/router/ranks")
    async def router_ranks(self) -> list[Json]:
        """One router's view of every rank: trust, blocks, load."""
        view = await self._routers.view()
        return [{**rank, "router": view["router"]} for rank in view["ranks"]]

    @api.get("/router/views")
    async def router_views(self) -> list[Json]:
        """The view of every router that answers."""
        return await self._routers.views(self._config.routing.num_routers)

    @api.get("/router/stats")
    async def router_stats(self) -> list[Json]:
        """How good every router's decisions have been since its start."""
        return await self._routers.stats()

    @api.get("/router/misses")
    async def router_misses(self, request: Request) -> Json:
        """Why tokens weren't cached, and where most of them were. Query: `limit`, rows at most."""
        limit = wanted_rows(request.query_params.get("limit"))
        return misses_answer(await self._routers.misses(), limit)

    @api.get("/router/audit")
    async def router_audit(self) -> Response:
        """Every router's index beside every rank's cache; 503 when some rank couldn't be compared."""
        answer, status = audit_answer(await self._routers.audit())
        return JSONResponse(answer, status_code=status)

    @api.get("/router/decisions/{answer_id}")
    async def router_decisions(self, answer_id: str) -> Json:
        """Which rank a request went to, why, and what came of it."""
        request_id = named_request(answer_id)
        return decisions_answer(request_id, await self._routers.decisions(request_id))

    @api.post("/router/explain")
    async def router_explain(self, request: Request) -> Response:
        """Which rank a request with this body, of any API, would go to now, and why."""
        prepared = await self._reader.read(request, parse_any)
        explanation = await self._dispatch(prepared, self._dispatcher.explain)
        return JSONResponse(explanation, headers=self._ignored.headers(prepared.ignored_fields))

    async def _complete(
        self, request: Request, parse: Callable[[bytes], ChatRequest | TextRequest]
    ) -> Response:
        prepared = await self._reader.read(request, parse)
        body, params = prepared.body, prepared.generate.params
        shape = AnswerShape(
            kind=body.kind,
            request_id=prepared.generate.request_id,
            model=served_name(self._config.model),
            spell=None if params.logprobs is None else self._tokenizer.spell,
            prompt_token_ids=prepared.generate.prompt_token_ids if body.return_token_ids else None,
            output=prepared.output,
            shows_thoughts=not isinstance(body, ChatRequest) or body.include_reasoning,
        )
        texts = self._text_streams(prepared)
        stream, report = await self._start(prepared)
        headers = self._ignored.headers(prepared.ignored_fields) | report.header()
        if body.stream:
            events = stream_answer(shape, stream, *texts, usage=body.usage_in_stream, missed=report.details)
            return AnswerEvents(events, stream, headers)
        answer = await whole_answer(shape, stream, *texts, missed=report.details)
        # Again: what came while the answer was computed is in this header too.
        headers |= report.header()
        return JSONResponse(answer, headers={"x-dp-rank": str(stream.rank), **headers})

    async def _start(self, prepared: PreparedRequest[PromptBody]) -> tuple[RankStream, CacheReport]:
        """The request's output, and what its client is told of its cached tokens."""
        notes = self._notes.of(prepared)
        start = partial(self._dispatcher.start, on_choice=notes.on_choice)
        stream = await self._dispatch(prepared, start)
        notes.report.begin(stream)
        return stream, notes.report

    def _text_streams(self, prepared: PreparedRequest[PromptBody]) -> list[TextStream]:
        """The text of each sample."""
        params, keep_stop = prepared.generate.params, prepared.body.keeps_stop
        given = (params.stop, params.min_tokens, params.skip_special_tokens)
        return [self._tokenizer.text_stream(*given, keep_stop=keep_stop) for _ in range(prepared.body.n)]

    def _token_name(self, token_id: int) -> str:
        return self._tokenizer.spell(token_id).name

    async def _dispatch(
        self,
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
