"""A served workbench on a tiny model of a real class, and a client that speaks to it over a real socket."""

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from builders_tasks import byte_tokenizer
from crosspatch.models import Model, open_model
from crosspatch.workbench import Limits, serving
from crosspatch.workbench.serving import Served

PAIR = {"clean": "When Mary and John went to the store, John gave a drink to"}
PAIR |= {
    "corrupt": "When Mary and John went to the store, Mary gave a drink to",
    "right": [" Mary"],
    "wrong": [" John"],
}
JSON = {"Content-Type": "application/json"}


@cache
def tiny() -> Model:
    """A GPT-2 of three random layers, which reads the words of the generators."""
    tokenizer = byte_tokenizer(bos=True)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=512, n_embd=32, n_layer=3, n_head=4)
    return open_model(GPT2LMHeadModel(config).eval(), tokenizer=tokenizer)


@dataclass(frozen=True)
class Client(Served):
    """Speaks to a running server."""

    def raw(self, method, path, body=None, headers=None):
        """Send a request as it is; give status, headers and body."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            line.request(method, path, body=body, headers=headers or {})
            answer = line.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            line.close()

    def ask(self, method, path, body=None, *, tab="test"):
        """Send JSON below the token; give status and the JSON that came back."""
        headers = {"X-Tab": tab} | (JSON if body is not None else {})
        given = None if body is None else json.dumps(body)
        status, _, answer = self.raw(method, f"/{self.token}/api/{path}", given, headers)
        return status, json.loads(answer)

    def events(self, sweep):
        """Read a sweep's events to their end, stream after stream, as a browser does."""
        found = []
        while not found or found[-1][1] not in ("done", "failed", "cancelled"):
            found += self.stream(sweep, found[-1][0] if found else None)
        return found

    def stream(self, sweep, last=None):
        """Read one stream of a sweep's events, from the one after `last` on, as (id, kind, content)."""
        headers = {} if last is None else {"Last-Event-ID": str(last)}
        body = self.raw("GET", f"/{self.token}/api/sweeps/{sweep}/events", headers=headers)[2].decode()
        found = []
        for block in filter(None, body.split("\n\n")):
            if block.startswith("id:"):
                parts = dict(line.split(": ", 1) for line in block.split("\n"))
                found.append((int(parts["id"]), parts["event"], json.loads(parts["data"])))
        return found


@contextmanager
def served(model: Model, out: Path, limits: Limits | None = None) -> Iterator[Client]:
    """Serve a model on a free port while the block lasts."""
    with serving.served(model, out=out, limits=limits) as running:
        yield Client(running.port, running.token, running.state)


def type_pair(page, clean=PAIR["clean"], corrupt=PAIR["corrupt"]):
    """Type both prompts; wait until they are read."""
    page.fill("#clean", clean)
    page.fill("#corrupt", corrupt)
    page.fill("#right", PAIR["right"][0])
    page.fill("#wrong", PAIR["wrong"][0])
    page.wait_for_selector("#run:not([disabled])")


def run(page):
    """Patch what the form says; wait until all cells are there."""
    page.evaluate("document.getElementById('keep-map').classList.add('gone')")  # an earlier map's is no sign
    page.click("#run")
    page.wait_for_selector("#keep-map:not(.gone)")


def place_of(page, kind, row, column):
    """Give the middle of a cell on the screen."""
    figure = page.locator(f"#maps figure[aria-label^='{kind}']")
    figure.scroll_into_view_if_needed()
    svg = figure.locator("svg")
    left, top, wide, tall, _, rows = (float(part) for part in svg.get_attribute("data-grid").split())
    box = svg.bounding_box()
    return box["x"] + left + (column + 0.5) * wide, box["y"] + top + (rows - 1 - row + 0.5) * tall


def drag(page, start, stop):
    """Press at one place and let go at another."""
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*stop, steps=4)
    page.mouse.up()
