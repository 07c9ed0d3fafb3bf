"""The workbench's addresses: its page and assets, questions as JSON, sweeps as server-sent events."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from pathlib import Path
from secrets import token_urlsafe
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from crosspatch.core.errors import CrosspatchError, Interrupted
from crosspatch.models.model import Model
from crosspatch.report.frame import page_style, read_asset
from crosspatch.report.summary import plain
from crosspatch.workbench import asked as wire
from crosspatch.workbench.about import about_model, examples_of
from crosspatch.workbench.guard import App, Guard, TooLong
from crosspatch.workbench.line import TooBusy
from crosspatch.workbench.looks import attention_of, lens_of, patch_together
from crosspatch.workbench.pairs import read_pair
from crosspatch.workbench.state import Limits, Result, State
from crosspatch.workbench.sweeps import LiveSweep

Body = TypeVar("Body", bound=BaseModel)
SCRIPTS = ("api.js", "maps.js", "views.js", "findings.js", "workbench.js")
SHARED = ("common.js", "board.js")  # with the pages of results
POLL, STREAM = 0.03, 2.0  # seconds between looks for new events; that one stream of them stays open
AGAIN = 200  # milliseconds after which a browser asks for the next stream


class Refused(Exception):
    """A request that cannot be understood; the message says what is wrong with it."""


def build_app(
    model: Model, *, token: str | None = None, out: Path | str = "runs", limits: Limits | None = None
) -> tuple[App, State, str]:
    """Build the application for one opened model; return it with its state and the token of its address.

    Close `state.line` when it is no longer served.
    """
    token = token or token_urlsafe(24)
    state = State(model, Path(out), limits or Limits())
    routes = Routes(state)
    inner = Starlette(
        routes=[Mount(f"/{token}", routes=routes.table())],
        exception_handlers={
            **dict.fromkeys((Refused, ValidationError), _refused),
            **dict.fromkeys((CrosspatchError, TooLong, HTTPException), _told),
            ClientDisconnect: _gone,
            Exception: _broken,
        },
    )
    return Guard(inner, token, state.limits.body), state, token


class Routes:
    """Answers to requests, on one state."""

    def __init__(self, state: State) -> None:
        self.state = state

    def table(self) -> list[Route]:
        """List the addresses, below the token."""
        post, get = ["POST"], ["GET"]
        return [
            Route("/", self.page, methods=get),
            Route("/assets/{name}", self.asset, methods=get),
            Route("/api/model", self.model, methods=get),
            Route("/api/examples", self.examples, methods=get),
            Route("/api/pair", self.pair, methods=post),
            Route("/api/patch", self.patch, methods=post),
            Route("/api/attention", self.attention, methods=post),
            Route("/api/lens", self.lens, methods=post),
            Route("/api/sweeps", self.sweep, methods=post),
            Route("/api/sweeps/{name}", self.sweep_again, methods=get),
            Route("/api/sweeps/{name}", self.cancel, methods=["DELETE"]),
            Route("/api/sweeps/{name}/events", self.events, methods=get),
            Route("/api/findings", self.findings, methods=get),
            Route("/api/findings", self.keep, methods=post),
            Route("/api/findings/{name}", self.drop, methods=["DELETE"]),
            Route("/api/findings/{name}/{form}", self.export, methods=get),
        ]

    # ---- the page --------------------------------------------------------------------------------------------------

    async def page(self, _: Request) -> Response:
        """Serve the page."""
        return Response(_own("index.html"), media_type="text/html")

    async def asset(self, request: Request) -> Response:
        """Serve one of the page's few files, by name; nothing else on disk can be named."""
        name = request.path_params["name"]
        if name == "style.css":
            return Response(f"{page_style()}\n{_own('workbench.css')}", media_type="text/css")
        if name in SCRIPTS + SHARED:
            return Response(_own(name) if name in SCRIPTS else read_asset(name), media_type="text/javascript")
        raise HTTPException(404)

    # ---- questions -------------------------------------------------------------------------------------------------

    async def model(self, _: Request) -> Response:
        """Describe the model: kinds of site, metrics, bounds."""
        return JSONResponse(about_model(self.state))

    async def examples(self, request: Request) -> Response:
        """List pairs of prompts to begin with."""
        return JSONResponse(await self._ask(request, lambda: examples_of(self.state.model)))

    async def pair(self, request: Request) -> Response:
        """Describe a typed pair."""
        body = await _read(request, wire.AskedPair)
        return _json(await self._ask(request, lambda: read_pair(self.state.model, body, self.state.limits)))

    async def patch(self, request: Request) -> Response:
        """Patch a selection of sites together."""
        body = await _read(request, wire.AskedPatch)
        return _json(await self._ask(request, lambda: patch_together(self.state, body)))

    async def attention(self, request: Request) -> Response:
        """Give a head's attention in both runs."""
        body = await _read(request, wire.AskedHead)
        return _json(await self._ask(request, lambda: attention_of(self.state, body)))

    async def lens(self, request: Request) -> Response:
        """Give what each layer decodes to at a position."""
        body = await _read(request, wire.AskedLens)
        return _json(await self._ask(request, lambda: lens_of(self.state, body)))

    async def _ask(self, request: Request, function: Callable[[], Any]) -> Any:
        return await asyncio.wrap_future(self.state.line.ask(_tab(request), function))

    # ---- sweeps ----------------------------------------------------------------------------------------------------

    async def sweep(self, request: Request) -> Response:
        """Put a sweep in the line."""
        body, tab, state = await _read(request, wire.AskedPatch), _tab(request), self.state
        made = await self._ask(request, lambda: LiveSweep(state.model, body, state.limits))
        state.line.put(tab, made)
        return _json({"sweep": state.sweeps.add(made), "ahead": state.line.ahead(made), **made.described()})

    async def sweep_again(self, request: Request) -> Response:
        """Describe a sweep once more, for a page that was reloaded."""
        name = request.path_params["name"]
        made = self.state.sweeps.need(name)
        return _json({"sweep": name, "ahead": self.state.line.ahead(made), **made.described()})

    async def cancel(self, request: Request) -> Response:
        """Cancel a sweep; one that has ended stays as it is."""
        self.state.sweeps.need(request.path_params["name"]).cancel()
        return JSONResponse({"cancelled": True})

    async def events(self, request: Request) -> Response:
        """Tell a sweep's events as they come, from the one after `Last-Event-ID` on."""
        name = request.path_params["name"]
        made = self.state.sweeps.need(name)
        last = re.fullmatch(r"[0-9]{1,9}", request.headers.get("last-event-id", ""))
        first = int(last[0]) + 1 if last else 0
        return StreamingResponse(self._stream(name, made, first), media_type="text/event-stream")

    async def _stream(self, name: str, sweep: LiveSweep, number: int) -> AsyncIterator[str]:
        """Write events as they come, for some seconds; then the browser asks again, which goes on after its last one.

        Browsers have six connections to a host: streams that stayed open would leave none to a seventh tab.
        """
        yield f"retry: {AGAIN}\n\n"
        until = time.monotonic() + STREAM
        while True:
            ended = sweep.ended  # looked at first: an event that comes after this look is written next time
            while number < len(sweep.events):
                kind, content = sweep.events[number]
                if sweep.effects is not None and kind == "done":
                    held = Result(sweep.asked, False, sweep.effects)
                    content = {**content, "result": self.state.results.add(held, name)}
                yield f"id: {number}\nevent: {kind}\ndata: {json.dumps(plain(content), allow_nan=False)}\n\n"
                number += 1
            if ended or self.state.line.closed or time.monotonic() > until:
                return
            # A look every few hundredths of a second costs less than a wake-up call across threads would in code.
            await asyncio.sleep(POLL)

    # ---- findings --------------------------------------------------------------------------------------------------

    async def findings(self, _: Request) -> Response:
        """List what was kept."""
        return _json([each.told() for each in self.state.findings.all()])

    async def keep(self, request: Request) -> Response:
        """Keep an answer as a run folder."""
        body, state = await _read(request, wire.AskedFinding), self.state
        result = state.results.need(body.result)
        return _json((await self._ask(request, lambda: state.findings.keep(result, body.note))).told())

    async def drop(self, request: Request) -> Response:
        """Take a finding off the list; its folder stays."""
        self.state.findings.drop(request.path_params["name"])
        return JSONResponse({"dropped": True})

    async def export(self, request: Request) -> Response:
        """Give one finding, or `all` of them, as a page or as Python."""
        from crosspatch.report.collection import collection_html
        from crosspatch.workbench.export import entry_of

        name, form = request.path_params["name"], request.path_params["form"]
        kept = self.state.findings
        chosen = kept.all() if name == "all" else [kept.need(name)]
        if form not in ("report", "python"):
            raise HTTPException(404)
        if not chosen:
            raise Refused("nothing is kept yet: keep an answer first.")
        script, title = kept.script(chosen), "findings" if name == "all" else name
        if form == "python":
            return _download(script, "text/x-python", f"{title}.py")
        page = await asyncio.to_thread(
            collection_html, f"Findings on {self.state.model.name}", [entry_of(each) for each in chosen], script
        )
        return _download(page, "text/html", f"{title}.html")


# ---- what comes in and goes out ----------------------------------------------------------------------------------


async def _read(request: Request, kind: type[Body]) -> Body:
    """Read a body. Raises Refused for what is no JSON of this kind."""
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise Refused("the content type must be application/json.")
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the request"
        raise Refused(f"{where}: {first['msg']}.") from None


def _tab(request: Request) -> str:
    """Name the tab that asks: each has its turns."""
    return request.headers.get("x-tab", "")[:40] or "no tab"


def _own(name: str) -> str:
    return files("crosspatch.workbench").joinpath("assets", name).read_text(encoding="utf-8")


def _json(content: Any) -> Response:
    return JSONResponse(plain(content))


def _download(text: str, kind: str, name: str) -> Response:
    return Response(text, media_type=kind, headers={"content-disposition": f'attachment; filename="{name}"'})


async def _refused(_: Request, problem: Exception) -> Response:
    return JSONResponse({"error": str(problem)}, 400)


async def _told(_: Request, problem: Exception) -> Response:
    if isinstance(problem, HTTPException):
        words = {404: "there is nothing at this address.", 405: "this address does not take such requests."}
        return JSONResponse({"error": words.get(problem.status_code, problem.detail)}, problem.status_code)
    known = {TooBusy: 429, TooLong: 413, Interrupted: 503}
    return JSONResponse({"error": str(problem)}, known.get(type(problem), 422))


async def _gone(_: Request, __: Exception) -> Response:
    """Answer nobody: who asked went away before all was said."""
    return Response(status_code=400)


async def _broken(_: Request, problem: Exception) -> Response:
    return JSONResponse({"error": f"internal error: {type(problem).__name__}. The terminal shows where."}, 500)
