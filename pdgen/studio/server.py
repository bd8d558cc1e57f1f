"""The studio's HTTP server: routes over ``Studio``, limits before anything is decoded, and errors of one line."""

import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from pdgen.files import describe_fault, is_plain_name
from pdgen.json_text import decode_json
from pdgen.messages import shorten
from pdgen.studio import api, exports
from pdgen.studio.corrections import Corrections
from pdgen.studio.errors import StudioError
from pdgen.studio.gate import Gate
from pdgen.studio.openapi import Operation, describe_api
from pdgen.studio.studio import Studio

STATIC = pathlib.Path(__file__).parent / "static"
_MAX_LINE = 400
_BEAT = 10.0  # seconds after which a silent stream sends a comment, so that a client that went away is noticed


class Service(NamedTuple):
    """What the handlers of requests work on."""

    studio: Studio
    corrections: Corrections


def _respond(content: Any, status: int = 200, **headers: str) -> Response:
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


async def _read_body(request: Request, kind: type) -> Any:
    """Read a request's JSON. Raises StudioError for too many bytes, another type, or fields that do not fit."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise StudioError("send the body as application/json", 415)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > api.MAX_BODY_BYTES:
            raise StudioError(f"the body has more than {api.MAX_BODY_BYTES:,} bytes; send smaller images", 413)
    try:
        return await run_in_threadpool(decode_json, bytes(body), kind)
    except msgspec.DecodeError as fault:
        raise StudioError(f"the body: {fault}; /openapi.json describes it", 400) from None


def _get_service(request: Request) -> Service:
    return request.app.state.service


def _get_client(request: Request) -> str:
    """Return the client whose absence stops what it began; "" = none."""
    client = request.headers.get("x-studio-client", "") or request.query_params.get("client", "")
    if len(client) > 64 or not client.isascii():
        raise StudioError("X-Studio-Client: at most 64 ASCII characters")
    return client


async def get_status(request: Request) -> Response:
    """Return the server's state, defaults and presets."""
    studio, corrections = _get_service(request)
    return _respond(
        api.Status(
            ready=studio.ready,
            message=studio.message,
            model=studio.sampler.model.name,
            settings=studio.settings.flatten(),
            corrections=corrections.count().corrections,
        )
    )


async def list_trajectories(request: Request) -> Response:
    """List all trajectories."""
    return _respond(_get_service(request).studio.list_all())


async def create_trajectories(request: Request) -> Response:
    """Create trajectories of a prompt and draw them."""
    studio, body = _get_service(request).studio, await _read_body(request, api.Create)
    jobs = await run_in_threadpool(studio.create, body, _get_client(request))
    return _respond(api.Created(trajectories=[studio.summarize(job) for job in jobs]), 201)


async def get_trajectory(request: Request) -> Response:
    """Return a trajectory with its stages."""
    return _respond(_get_service(request).studio.view(request.path_params["id"]))


async def delete_trajectory(request: Request) -> Response:
    """Stop a trajectory and delete it; its branches stay."""
    await run_in_threadpool(_get_service(request).studio.remove, request.path_params["id"])
    return Response(status_code=204)


async def run_trajectory(request: Request) -> Response:
    """Continue a trajectory, by some stages or to its end."""
    studio, body = _get_service(request).studio, await _read_body(request, api.Run)
    return _respond(studio.summarize(studio.run(request.path_params["id"], body, _get_client(request))))


async def stop_trajectory(request: Request) -> Response:
    """Stop a trajectory; the stage in work is dropped, finished ones stay."""
    studio = _get_service(request).studio
    return _respond(studio.summarize(studio.stop(request.path_params["id"])))


async def branch_trajectory(request: Request) -> Response:
    """Branch a trajectory at a stage, with a text or image of one's own or with other seeds."""
    studio, body = _get_service(request).studio, await _read_body(request, api.Branch)
    jobs = await run_in_threadpool(studio.branch, request.path_params["id"], body, _get_client(request))
    return _respond(api.Created(trajectories=[studio.summarize(job) for job in jobs]), 201)


async def correct_stage(request: Request) -> Response:
    """Say that a stage is right, or wrong and why; it becomes a training record."""
    service, body = _get_service(request), await _read_body(request, api.Correct)
    trajectory = service.studio.find(request.path_params["id"]).trajectory
    better = service.studio.find(body.better).trajectory if body.better else None
    saved = await run_in_threadpool(service.corrections.add, request.path_params["id"], trajectory, body, better)
    service.studio.events.add("corrections", saved, passing="corrections")
    return _respond(saved, 201)


async def export_corrections(request: Request) -> Response:
    """Return all corrections as a zip of two data sets: ``records`` to train on, ``pairs`` of preferences."""
    data = await run_in_threadpool(_get_service(request).corrections.export)
    return _attach(data, "application/zip", "corrections.zip")


async def get_image(request: Request) -> Response:
    """Return a picture of a trajectory."""
    studio, file = _get_service(request).studio, request.path_params["file"]
    job = studio.find(request.path_params["id"])
    if not is_plain_name(file, ".png") or file not in exports.list_files(job.trajectory):
        raise StudioError(f"{job.name} has no picture {file[:40]!r}; GET /api/trajectories/{job.name} lists them", 404)
    headers = {"Cache-Control": "private, max-age=31536000, immutable"}  # a finished picture never changes
    return FileResponse(studio.store.folder / job.name / file, media_type="image/png", headers=headers)


async def get_preview(request: Request) -> Response:
    """Return the picture that is being drawn, as it is estimated to become; status 204 if none is being drawn."""
    preview = _get_service(request).studio.find(request.path_params["id"]).preview
    # Not an error: a page often asks just after the picture was finished.
    return Response(preview, media_type="image/webp") if preview else Response(status_code=204)


async def export_trajectory(request: Request) -> Response:
    """Return a trajectory as "zip", "strip", "animation", "command" or "python"."""
    studio, kind = _get_service(request).studio, request.path_params["kind"]
    job = studio.find(request.path_params["id"])
    if kind not in exports.EXPORTS:
        raise StudioError(f"export {kind[:40]!r}: choose one of {', '.join(exports.EXPORTS)}", 404)
    data, media, file = await run_in_threadpool(exports.EXPORTS[kind], studio.store.folder, job.name, job.trajectory)
    return _attach(data, media, file)


def _attach(data: bytes, media: str, file: str) -> Response:
    return Response(data, media_type=media, headers={"Content-Disposition": f'attachment; filename="{file}"'})


async def stream_events(request: Request) -> Response:
    """Send what happens as server-sent events.

    The first are those after the query's ``after``, or the header ``Last-Event-ID``: the id of the last event that the
    client has. An event "reset" says that they are no longer known: list the trajectories again.
    """
    studio, client = _get_service(request).studio, _get_client(request)
    cursor = request.headers.get("last-event-id") or request.query_params.get("after") or studio.events.cursor
    after, only = studio.events.parse_cursor(cursor), request.query_params.get("trajectory")
    if only is not None:
        studio.find(only)
    body = _follow(request, studio, client, after, only)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(body, media_type="text/event-stream", headers=headers)


async def _follow(
    request: Request, studio: Studio, client: str, after: int | None, only: str | None
) -> AsyncIterator[str]:
    """Yield the events after a number as lines of a stream, until the client goes away or the studio closes."""
    log = studio.events
    studio.add_client(client)
    try:
        yield "retry: 1000\n\n"
        while not studio.closing and not await request.is_disconnected():
            events = None if after is None else log.read(after)
            if after is None or events is None:
                cursor = log.cursor
                after = int(cursor.partition("-")[2])
                yield f"id: {cursor}\nevent: reset\ndata: {{}}\n\n"
                continue
            for number, kind, data in events:
                if only is None or msgspec.json.decode(data).get("id") == only:
                    yield f"id: {log.epoch}-{number}\nevent: {kind}\ndata: {data}\n\n"
            after = events[-1].number if events else after
            if not events:
                yield ":\n\n"
            await log.wait(after, _BEAT)
    finally:
        studio.remove_client(client)


async def get_openapi(request: Request) -> Response:
    """Return this description."""
    return _respond(describe_api(OPERATIONS))


def _serve_file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        return FileResponse(STATIC / name, headers={"Cache-Control": "no-cache"})

    return serve


_ONE = "/api/trajectories/{id}"
OPERATIONS = (
    Operation("GET", "/api/status", get_status, answer=api.Status),
    Operation("GET", "/api/events", stream_events, query=("after", "trajectory", "client"), media="text/event-stream"),
    Operation("GET", "/api/trajectories", list_trajectories, answer=api.Listing),
    Operation("POST", "/api/trajectories", create_trajectories, body=api.Create, answer=api.Created, status=201),
    Operation("GET", _ONE, get_trajectory, answer=api.TrajectoryView),
    Operation("DELETE", _ONE, delete_trajectory, status=204),
    Operation("POST", f"{_ONE}/run", run_trajectory, body=api.Run, answer=api.Summary),
    Operation("POST", f"{_ONE}/stop", stop_trajectory, answer=api.Summary),
    Operation("POST", f"{_ONE}/branch", branch_trajectory, body=api.Branch, answer=api.Created, status=201),
    Operation("POST", f"{_ONE}/corrections", correct_stage, body=api.Correct, answer=api.Saved, status=201),
    Operation("GET", f"{_ONE}/images/{{file}}", get_image, media="image/png"),
    Operation("GET", f"{_ONE}/preview", get_preview, media="image/webp"),
    Operation("GET", f"{_ONE}/exports/{{kind}}", export_trajectory, media="application/octet-stream"),
    Operation("GET", "/api/corrections", export_corrections, media="application/zip"),
    Operation("GET", "/openapi.json", get_openapi, media="application/json"),
)


def _answer_fault(request: Request, fault: Exception) -> Response:
    """Answer a refused request with one line."""
    status = fault.status if isinstance(fault, StudioError) else 400
    if isinstance(fault, OSError):
        status = 507
    words = describe_fault(fault) if isinstance(fault, OSError) else str(fault)
    retry = {"Retry-After": "5"} if status == 429 else {}
    return _respond(api.Fault(error=shorten(" ".join(words.split()), _MAX_LINE)), status, **retry)


def _answer_http(request: Request, fault: Exception) -> Response:
    assert isinstance(fault, HTTPException)
    line = f"{request.method} {request.url.path[:80]}: {fault.detail.lower()}; /openapi.json lists what there is"
    return Response(
        msgspec.json.encode(api.Fault(error=line)), fault.status_code, fault.headers, media_type="application/json"
    )


def make_app(studio: Studio, corrections: Corrections, hosts: tuple[str, ...], token: str | None) -> Starlette:
    """Make the application.

    Args:
      hosts: names that requests may call it by, without ports.
      token: what clients must show; None: nothing.
    """
    routes: list[Any] = [Route(o.path, o.handler, methods=[o.method]) for o in OPERATIONS]
    routes += [Route("/", _serve_file("index.html")), Route("/docs", _serve_file("docs.html"))]
    routes += [Mount("/static", StaticFiles(directory=STATIC))]
    handlers: Any = dict.fromkeys((StudioError, ValueError, OSError, ClientDisconnect), _answer_fault)
    app = Starlette(routes=routes, exception_handlers=handlers | {HTTPException: _answer_http})
    app.state.service = Service(studio, corrections)
    app.add_middleware(Gate, hosts=hosts, token=token)
    return app
