"""Serve the workbench on this machine until it is interrupted."""

import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path
from socket import AF_INET, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

from crosspatch.core.errors import BadInput, MissingExtra
from crosspatch.models.model import Model
from crosspatch.workbench.state import Limits, State

HOST = "127.0.0.1"


def require_server() -> None:
    """Raise MissingExtra unless starlette and uvicorn are installed."""
    if not all(map(find_spec, ("starlette", "uvicorn"))):
        raise MissingExtra("the workbench needs starlette and uvicorn: pip install 'crosspatch[workbench]'")


def serve(
    model: Model,
    *,
    port: int = 0,
    out: Path | str = "runs",
    limits: Limits | None = None,
    show: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the workbench on the loopback address until Ctrl-C; `port` 0 takes a free one, `show` opens a browser.

    The address that is told holds a random token: who does not know it gets nothing. Kept findings go to run folders
    below `out`.

    Raises:
        MissingExtra: starlette and uvicorn are not installed.
        BadInput: the port is taken, or several processes hold the model together.
    """
    require_server()
    if model.together:
        raise BadInput("several processes hold this model together, and a workbench serves from one: open it in one.")
    running = _Running.of(model, out=out, limits=limits, port=port, log="warning")
    say(
        f"workbench on {model.name}: {running.served.address}\n"
        "It answers to this machine only. Ctrl-C ends it; what was kept stays."
    )
    try:
        with _shown(running.served.address) if show else nullcontext():
            running.run()
    except KeyboardInterrupt:
        pass
    finally:
        running.close()


@dataclass(frozen=True)
class Served:
    """A workbench that runs beside other code: its port, the token of its address, what it holds."""

    port: int
    token: str
    state: State

    @property
    def address(self) -> str:
        """The page's address."""
        return f"http://{HOST}:{self.port}/{self.token}/"


@contextmanager
def served(model: Model, *, out: Path | str = "runs", limits: Limits | None = None) -> Iterator[Served]:
    """Serve the workbench on a free port beside other code, while the block lasts; for notebooks and tests.

    While the workbench runs the model, whoever else uses it gets BadInput, and the page's questions while the block
    does. Raises MissingExtra as `serve` does.

    >>> with served(model) as bench:  # doctest: +SKIP
    ...     print(bench.address)
    """
    require_server()
    running = _Running.of(model, out=out, limits=limits, port=0, log="error")
    thread = Thread(target=running.run, name="crosspatch-workbench")
    thread.start()
    try:
        yield running.served
    finally:
        running.stop()
        thread.join()
        running.close()


@dataclass(frozen=True)
class _Running:
    """A server on an open door, and what it serves."""

    served: Served
    server: Any
    door: socket

    @classmethod
    def of(cls, model: Model, *, out: Path | str, limits: Limits | None, port: int, log: str) -> "_Running":
        """Set it up; nothing is answered before `run`. Raises BadInput if the port is taken."""
        import uvicorn

        from crosspatch.workbench.app import build_app

        door = open_door(port)
        app, state, token = build_app(model, out=out, limits=limits)

        class Server(uvicorn.Server):
            """Stops the line when it is told to end, so that open streams end by themselves."""

            def handle_exit(self, *given: Any) -> None:
                state.line.stop()
                super().handle_exit(*given)

        settings = uvicorn.Config(app, log_level=log, access_log=False, timeout_graceful_shutdown=2, lifespan="off")
        return cls(Served(door.getsockname()[1], token, state), Server(settings), door)

    def run(self) -> None:
        """Answer until stopped."""
        self.server.run(sockets=[self.door])

    def stop(self) -> None:
        """Let `run` end."""
        self.served.state.line.stop()
        self.server.should_exit = True

    def close(self) -> None:
        """Let go of the model and the port."""
        self.served.state.line.close()
        self.door.close()


@contextmanager
def _shown(address: str) -> Iterator[None]:
    """Open the address in a browser, by a file that only its owner can read.

    On a command line every user of the machine could read the token.
    """
    with TemporaryDirectory(prefix="crosspatch-") as folder:
        page = Path(folder) / "workbench.html"
        page.touch(mode=0o600)
        page.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={escape(address)}">', "utf-8")
        webbrowser.open(page.as_uri())
        yield


def open_door(port: int) -> socket:
    """Listen on the loopback address; port 0 is a free one. Raises BadInput if it is taken."""
    door = socket(AF_INET, SOCK_STREAM)
    door.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    try:
        door.bind((HOST, port))
        door.listen(128)  # a browser that comes before the server is up waits, and is not turned away
    except (OSError, OverflowError) as problem:
        door.close()
        raise BadInput(f"port {port} cannot be taken: {problem}. Give another --port, or 0 for a free one.") from None
    return door
