"""Serve the workbench on this machine until it is interrupted."""

import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from socket import AF_INET, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket
from threading import Thread

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
    import uvicorn

    from crosspatch.workbench.app import build_app

    if model.together:
        raise BadInput("several processes hold this model together, and a workbench serves from one: open it in one.")
    door = open_door(port)
    app, state, token = build_app(model, out=out, limits=limits)
    address = f"http://{HOST}:{door.getsockname()[1]}/{token}/"
    say(f"workbench on {model.name}: {address}\nIt answers to this machine only. Ctrl-C ends it; what was kept stays.")
    if show:
        webbrowser.open(address)
    settings = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1, lifespan="off")
    try:
        uvicorn.Server(settings).run(sockets=[door])
    except KeyboardInterrupt:
        pass
    finally:
        state.line.close()
        door.close()


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

    The model must not be used by the block meanwhile. Raises MissingExtra as `serve` does.

    >>> with served(model) as bench:  # doctest: +SKIP
    ...     print(bench.address)
    """
    require_server()
    import uvicorn

    from crosspatch.workbench.app import build_app

    app, state, token = build_app(model, out=out, limits=limits)
    door = open_door(0)
    settings = uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=1, lifespan="off")
    server = uvicorn.Server(settings)
    thread = Thread(target=server.run, kwargs={"sockets": [door]}, name="crosspatch-workbench")
    thread.start()
    try:
        yield Served(door.getsockname()[1], token, state)
    finally:
        server.should_exit = True
        thread.join()
        state.line.close()
        door.close()


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
