"""`workbench`: type prompts and patch a model live, in a browser on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from crosspatch.cli import options as given
from crosspatch.cli.folder import ROOT, writable
from crosspatch.cli.question import open_model, parse_size
from crosspatch.cli.say import Voice

Port = Annotated[
    int, typer.Option("--port", min=0, max=65535, metavar="N", help="Port on this machine.  [default: a free one]")
]
Show = Annotated[bool, typer.Option("--open/--no-open", help="Open the address in a browser.")]
Into = Annotated[Path, typer.Option("--out", metavar="DIR", help="Kept findings become run folders in here.")]


def workbench(
    model: given.Model,
    *,
    port: Port = 0,
    show: Show = True,
    out: Into = ROOT,
    memory: given.Memory = None,
    device: given.Device = None,
    dtype: given.Dtype = None,
    layout: given.LayoutOption = None,
    quiet: given.Quiet = False,
) -> None:
    """Type prompts in the browser and patch the model live.

    \b
    crosspatch workbench gemma-3-270m
    crosspatch workbench gemma-3-270m --port 8080 --no-open
    """
    from crosspatch.workbench.serving import require_server, serve
    from crosspatch.workbench.state import Limits

    require_server()  # before a model is loaded
    voice, room = Voice(quiet=quiet), parse_size(memory)
    with writable(out):
        opened = open_model(model, voice, device=device, dtype=dtype, layout=layout)
        serve(opened, port=port, out=out, limits=Limits(memory=room), show=show, say=voice.show_as_is)
