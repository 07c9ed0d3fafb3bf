"""How long a workbench's user waits: beside one forward of the same model, in the same process, over a real socket.

python bench/workbench.py [--model gemma-3-270m] [--repeat 5] [--threads N] [--json FILE]

Prints medians of: one forward; a joint patch (model time as the server tells it, and as the client sees it); the first
cells of a full residual map; the whole map; a pair read; a head's attention; a position decoded.
"""

import argparse
import http.client
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

import crosspatch as xp
from crosspatch.workbench.serving import served

PAIR = {
    "clean": "When Mary and John went to the store, John gave a drink to",
    "corrupt": "When Mary and John went to the store, Mary gave a drink to",
    "right": [" Mary"],
    "wrong": [" John"],
}
EARLY = PAIR | {"corrupt": PAIR["clean"].replace("Mary and John", "Anna and John")}


def main() -> None:
    """Serve, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    model = xp.open_model(given.model)
    with tempfile.TemporaryDirectory() as folder, served(model, out=folder) as bench:
        found = measure(model, Client(bench.port, bench.token), given.repeat)
    print(f"{given.model}, {torch.get_num_threads()} threads, median of {given.repeat}")
    for name, seconds in found.items():
        print(f"{name:<50}{seconds:8.3f} s")
    if given.json:
        given.json.write_text(json.dumps({"model": given.model, "threads": torch.get_num_threads(), "seconds": found}))


class Client:
    """Asks the served workbench."""

    def __init__(self, port: int, token: str) -> None:
        self.port, self.token = port, token

    def ask(self, path: str, body: object) -> dict:
        """Send a question; give its answer."""
        line = http.client.HTTPConnection("127.0.0.1", self.port)
        line.request("POST", f"/{self.token}/api/{path}", json.dumps(body), {"Content-Type": "application/json"})
        answer = line.getresponse()
        found = json.loads(answer.read())
        if answer.status != 200:
            raise SystemExit(found["error"])
        return found

    def sweep(self, body: object) -> tuple[float, float]:
        """Run a sweep; give the seconds to its first cells and to its end."""
        began, first = time.perf_counter(), None
        made, last = self.ask("sweeps", body), b""
        while True:  # a stream ends after some seconds, and the next one goes on from the last event
            line = http.client.HTTPConnection("127.0.0.1", self.port)
            headers = {"Last-Event-ID": last.decode()} if last else {}
            line.request("GET", f"/{self.token}/api/sweeps/{made['sweep']}/events", headers=headers)
            for text in line.getresponse():
                if text.startswith(b"id: "):
                    last = text[4:].strip()
                if text.startswith(b"event: cells") and first is None:
                    first = time.perf_counter() - began
                if text.startswith((b"event: failed", b"event: cancelled")):
                    raise SystemExit("the sweep did not end")
                if text.startswith(b"event: done"):
                    return first or float("nan"), time.perf_counter() - began


def measure(model: xp.Model, client: Client, repeat: int) -> dict[str, float]:
    """Time each kind of question in turns, after one round that is not counted."""
    ids = torch.tensor([model.tokenizer.encode(PAIR["clean"])])
    rounds: list[dict[str, float]] = []
    for _ in range(repeat + 1):
        found: dict[str, float] = {}
        found["one forward"] = timed(lambda: forward(model, ids))
        patch = {"pair": PAIR, "sites": "resid.post[5]@10"}
        answer: dict = {}
        found["one patch, as the client sees it"] = timed(lambda: answer.update(client.ask("patch", patch)))  # noqa: B023
        found["one patch, model time"] = answer["seconds"]
        found["one patch, model time beyond one forward"] = answer["seconds"] - found["one forward"]
        for name, pair in (("one name differs", PAIR), ("the second word differs", EARLY)):
            first, whole = client.sweep({"pair": pair, "sites": "resid.post"})
            found |= {f"residual map, {name}: first cells": first, f"residual map, {name}: whole": whole}
        found["a pair read"] = timed(lambda: client.ask("pair", PAIR))
        found["a head's attention"] = timed(lambda: client.ask("attention", {"pair": PAIR, "layer": 5, "head": 0}))
        found["a position decoded"] = timed(lambda: client.ask("lens", {"pair": PAIR, "position": 10}))
        rounds.append(found)
    return {name: median(each[name] for each in rounds[1:]) for name in rounds[0]}


def forward(model: xp.Model, ids: torch.Tensor) -> None:
    """Run the model once."""
    with torch.inference_mode():
        model.module(ids)


def timed(act) -> float:
    """Give the seconds that something takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
