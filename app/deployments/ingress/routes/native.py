"""SGLang's own API: a prompt's continuation, and what is done to all ranks."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.responses import Response

from app.api.native.answer import NativeShape
from app.api.native.request import GenerateBody, parse_generate
from app.deployments.ingress.answers.events import AnswerEvents
from app.deployments.ingress.answers.native import stream_native, whole_native
from app.deployments.ingress.native.loads import check_loads_query, loads_answer, wanted_rank
from app.deployments.ingress.native.rank_control import flush_wait
from app.deployments.ingress.openapi.describe import described
from app.deployments.ingress.reports.server_info import present_dp_size
from app.deployments.ingress.service import Service
from app.deployments.messages import Json
from app.errors import NotAllowedError


def native_routes(service: Service) -> APIRouter:
    """The routes that SGLang's router and its clients know."""
    router = APIRouter()

    takes = described(GenerateBody, answer="Generated", events="Generated")

    @router.post("/generate", openapi_extra=takes)
    @router.put("/generate", openapi_extra=takes)
    async def generate(request: Request) -> Response:
        """A prompt's continuation, in SGLang's shape."""
        return await _generate(service, request)

    @router.get(
        "/v1/loads",
        openapi_extra=described(query={"dp_rank": "only this rank's", "include": "only these parts"}),
    )
    async def loads(request: Request) -> Json:
        """Every rank's load, in SGLang's shape."""
        query = request.query_params
        check_loads_query(query.get("include"), query.get("format"))
        ranks = await service.directory.poll()
        dp_size = max(service.config.largest_dp_size, present_dp_size(service.config, ranks))
        return loads_answer(ranks, wanted_rank(query.get("dp_rank"), dp_size))

    @router.get("/health_generate")
    async def health_generate() -> Response:
        """200 when some rank computes a token now, or none runs until there is a request; else 503."""
        report, status = await service.control.probe()
        return JSONResponse(report, status_code=status)

    waits = described(query={"timeout": "seconds that a rank may take until it is idle: 0 to 60"})

    @router.get("/flush_cache", openapi_extra=waits)
    @router.post("/flush_cache", openapi_extra=waits)
    async def flush_cache(request: Request) -> Response:
        """Every rank forgets its cached blocks; 503 when some rank couldn't."""
        if not service.config.ingress.allow_flush_cache:
            raise NotAllowedError("/flush_cache: this deployment has ingress.allow_flush_cache: false")
        ranks = await service.control.flush(flush_wait(request.query_params.get("timeout")))
        success = all(each["flushed"] for each in ranks)
        return JSONResponse({"success": success, "ranks": ranks}, status_code=200 if success else 503)

    return router


async def _generate(service: Service, request: Request) -> Response:
    prepared = await service.read(request, parse_generate)
    body, params = prepared.body, prepared.generate.params
    eos_token_ids = () if params.ignore_eos else service.tokenizer.eos_token_ids
    shape = NativeShape(
        request_id=prepared.generate.request_id,
        rid=body.rid,
        num_samples=body.n,
        is_list=body.is_batch,
        ending_token_ids=frozenset((*eos_token_ids, *params.stop_token_ids)),
        num_likeliest=params.logprobs,
        name_of=(lambda token_id: service.tokenizer.spell(token_id).name)
        if body.return_text_in_logprobs
        else None,
        is_incremental=body.incremental_streaming_output,
    )
    texts = service.text_streams(prepared)
    stream, report = await service.begin(prepared)
    headers = {**service.headers(prepared), **report.header()}
    if body.stream:
        return AnswerEvents(stream_native(shape, stream, *texts), stream, headers)
    answer = await whole_native(shape, stream, *texts)
    return JSONResponse(answer, headers={"x-dp-rank": str(stream.rank), **headers})
