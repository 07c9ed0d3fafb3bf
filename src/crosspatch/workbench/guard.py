"""Who may speak to the workbench: this machine's own browser, with the token, from the page that was served."""

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HOSTS = ("127.0.0.1", "localhost", "[::1]")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",  # the token is in the address
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Guard:
    """Refuses, before any of it is read, what does not come from the workbench's own page; bounds what is read.

    A host name other than this machine's own is a page that had its name point here (DNS rebinding); a foreign origin
    is another page; a path without the token is somebody who guesses. `body` is the most bytes of one request.
    """

    app: App
    token: str
    body: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it with the reason why not."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await answer(send, *refusal)
            return
        await self.app(scope, _Bounded(receive, self.body), _marked(send))

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if host.rsplit(":", 1)[0] not in HOSTS and host not in HOSTS:
            return 403, "this workbench answers to 127.0.0.1 and localhost only."
        origin = headers.get("origin")
        # The file that a browser is started with leads here from elsewhere; it can open the page and nothing else.
        opened = scope["path"] == f"/{self.token}/" and headers.get("sec-fetch-mode") == "navigate"
        foreign = headers.get("sec-fetch-site") == "cross-site" and not (opened and scope["method"] == "GET")
        if (origin is not None and origin != f"http://{host}") or foreign:
            return 403, "this request comes from another page: the workbench answers to its own only."
        given = scope["path"].split("/", 2)[1] if scope["path"].count("/") > 1 else ""
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            return 403, "the address lacks the workbench's token: open the one that was printed when it started."
        if scope["method"] not in ("GET", "HEAD") and headers.get("content-length", "0").isdigit():
            length = int(headers.get("content-length", "0"))
            if length > self.body:
                return 413, f"the request has {length:,} bytes, and {self.body:,} are allowed: give shorter prompts."
        return None


class TooLong(Exception):
    """A body that went on beyond what is allowed, without having said so."""


@dataclass
class _Bounded:
    """Reads a body and counts."""

    receive: Receive
    most: int
    read: int = 0

    async def __call__(self) -> MutableMapping[str, Any]:
        message = await self.receive()
        self.read += len(message.get("body", b""))
        if self.read > self.most:
            raise TooLong(f"the request is longer than the {self.most:,} bytes that are allowed: give shorter prompts.")
        return message


def _marked(send: Send) -> Send:
    """Put the headers that keep a page to itself on every answer."""

    async def forward(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", ()), *own]}
        await send(message)

    return forward


async def answer(send: Send, status: int, error: str) -> None:
    """Send a refusal as JSON."""
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    start = {"type": "http.response.start", "status": status, "headers": headers}
    await _marked(send)(start)
    await send({"type": "http.response.body", "body": body})
