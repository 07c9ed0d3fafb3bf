"""Time sweeps of an encoder–decoder by `patch_any` against raw hooks: one process, the same sites and batches.

    python bench/any_model.py                        # the shape of Whisper-base, random weights
    python bench/any_model.py --real                 # its real weights, a sentence against noise
    python bench/any_model.py --shape tiny           # in a moment

One pair of clips, one prompt. Ways: whole forwards with one plain torch hook, as many patched runs in a batch as ours,
all of one module; the same with the encoder's outputs computed once and handed in (`encoder_outputs=`), where the sites
are in the decoder; and `patch_any`. What hooks write and the encoder's outputs are kept beforehand and not timed; the
recorded runs and proofs of `patch_any` are, but not the look at the module that a trial takes once. The ways with hooks
run `--batches` batches, since their batches cost alike; rates are patched runs a second, ratios medians over
repetitions, in which ways take turns. On a shared machine CPU seconds, of all threads, say more. A patch in the encoder
changes all that comes after it, so less is reused there: what lies below it. A way whose numbers differ from those of
`patch_any` by more than 1e-4 of the largest effect gets no ratio; then the exit status is 3.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import crosspatch as xp
from crosspatch.engine.measure import in_turns, ratio
from crosspatch.modules.cells import select
from machine import describe
from tables import factor, make_table

WHOLE, HANDED, OURS = "whole forwards, hooks", "encoder once, hooks", "patch_any"
SAME = 1e-4  # share of the largest effect
FOX = Path(__file__).parents[1] / "tests" / "audio" / "fox.flac"
SHAPES = {
    "whisper-base": {
        "d_model": 512,
        "layers": 6,
        "attention_heads": 8,
        "ffn_dim": 2048,
        "source": 1500,
        "vocab": 51865,
    },
    "tiny": {"d_model": 32, "layers": 2, "attention_heads": 4, "ffn_dim": 48, "source": 12, "vocab": 60},
}


@dataclass(frozen=True)
class Kind:
    """A kind of site as a hook has it: the module in each layer, its side, and whether heads are its units."""

    name: str
    path: str
    side: str = "output"
    heads: bool = False

    @property
    def in_decoder(self) -> bool:
        """Whether the encoder's outputs stay as they are."""
        return self.name.startswith("decoder")


KINDS = (
    Kind("decoder.resid.post", "model.decoder.layers.{}"),
    Kind("decoder.cross.head", "model.decoder.layers.{}.encoder_attn.out_proj", "input", heads=True),
    Kind("decoder.mlp.out", "model.decoder.layers.{}.fc2"),
    Kind("encoder.resid.post", "model.encoder.layers.{}"),
)


@dataclass(frozen=True)
class Row:
    """One way on one kind: seconds a patched run in each repetition, those timed of all, times those of `patch_any`."""

    kind: str
    way: str
    seconds: list[float]
    cpu: list[float]
    timed: int
    sites: int
    ratio: float | None
    cpu_ratio: float | None
    error: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and write JSON."""
    given = _parse(arguments)
    torch.set_num_threads(given.threads or torch.get_num_threads())
    trial = make_trial(given)
    kept = seen(trial)
    rows = [row for kind in KINDS for row in measure(trial, kind, kept[kind.name], given)]
    Console(width=120).print(table(f"{given.shape}{', real weights' if given.real else ''}", rows))
    settings = vars(given) | {"out": given.out.name}
    document = {**describe(given), "settings": settings, "rows": [asdict(row) for row in rows]}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(document, indent=1), encoding="utf-8")
    told = document["machine"]
    print(f"{told['threads']} threads, load {told['load']:.1f} at the end\nwritten: {given.out}")
    if any(row.ratio is None for row in rows):
        sys.exit(3)


def make_trial(given: argparse.Namespace) -> xp.Trial:
    """Make the pair: sound against noise, the same words said so far, two likely next ones."""
    draw = torch.Generator().manual_seed(given.seed)
    if given.real:
        from crosspatch.audio import load_audio, log_mel, transcribe
        from crosspatch.models.load import load

        whisper, clip = load("whisper-base"), load_audio(FOX)
        module, mel = whisper.module, log_mel(whisper, [clip]).mel
        (said,) = transcribe(module, whisper.tokenizer, [clip], max_tokens=given.tokens)
        tokens = torch.tensor([said.tokens[: given.tokens]])
        right, wrong = said.tokens[given.tokens], said.tokens[given.tokens - 1]
    else:
        module, shape = random_weights(given), SHAPES[given.shape]
        mel = torch.randn(1, module.config.num_mel_bins, 2 * shape["source"], generator=draw)
        tokens = torch.randint(3, shape["vocab"], (1, given.tokens), generator=draw)
        right, wrong = 5, 7
    noise = torch.randn(mel.shape, generator=draw) * mel.std() + mel.mean()
    runs = [{"input_features": x, "decoder_input_ids": tokens, "use_cache": False} for x in (mel, noise)]
    return xp.Trial(module, *runs, lambda output: output.logits[:, -1, right] - output.logits[:, -1, wrong], 1)


def random_weights(given: argparse.Namespace) -> nn.Module:
    """Make a Whisper of a shape, its weights wide enough that effects are no rounding noise."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    shape = SHAPES[given.shape]
    both = {f"{s}_{n}": shape[n] for s in ("encoder", "decoder") for n in ("layers", "attention_heads", "ffn_dim")}
    sizes = {"d_model": shape["d_model"], "vocab_size": shape["vocab"], "max_source_positions": shape["source"]}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    torch.manual_seed(given.seed)
    config = WhisperConfig(**both, **sizes, **special, num_mel_bins=80, init_std=shape["d_model"] ** -0.5)
    return WhisperForConditionalGeneration(config).eval()


def seen(trial: xp.Trial) -> dict[str, list[Tensor]]:
    """Return what the source run has, by kind and layer, from one forward."""
    found: dict[str, list[Tensor]] = {kind.name: [] for kind in KINDS}
    with ExitStack() as hooks, torch.inference_mode():
        for kind in KINDS:
            for layer in range(trial.module.config.decoder_layers):
                hooks.enter_context(hooked(trial.module, kind, layer, partial(_keep, found[kind.name])))
        trial.module(**trial.clean)
    return found


def _keep(into: list[Tensor], value: Tensor) -> Tensor:
    into.append(value.clone())
    return value


@contextmanager
def hooked(module: nn.Module, kind: Kind, layer: int, act: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let `act` say what stands at a kind's place; the hook comes before transformers' own."""
    part = module.get_submodule(kind.path.format(layer))

    def before(_: nn.Module, args: tuple[Any, ...]) -> Any:
        return (act(args[0]), *args[1:])

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        return (act(output[0]), *output[1:]) if isinstance(output, tuple) else act(output)

    register = part.register_forward_pre_hook if kind.side == "input" else part.register_forward_hook
    handle = register(before if kind.side == "input" else after, prepend=True)
    try:
        yield
    finally:
        handle.remove()


@torch.inference_mode()
def by_hooks(
    trial: xp.Trial, kind: Kind, sites: Sequence[xp.Site], kept: Sequence[Tensor], heard: Any = None
) -> list[float]:
    """Return the metric after each patch at one module, all in one batch; `heard` is what the encoder gives."""
    source, count = kept[sites[0].layer or 0], len(sites)
    width = source.shape[-1] // trial.module.config.decoder_attention_heads

    def write(value: Tensor) -> Tensor:
        value = value.clone()
        for row, site in enumerate(sites):
            columns = slice(None) if site.unit is None else slice(site.unit * width, (site.unit + 1) * width)
            at = slice(None) if site.position == "all" else site.position
            value[row, at, columns] = source[0, at, columns]
        return value

    given = dict(trial.corrupt)
    given["decoder_input_ids"] = given["decoder_input_ids"].expand(count, -1)
    if heard is None:
        given["input_features"] = given["input_features"].expand(count, -1, -1)
    else:
        del given["input_features"]
        given["encoder_outputs"] = (heard.expand(count, -1, -1),)
    with hooked(trial.module, kind, sites[0].layer or 0, write):
        return trial.metric(trial.module(**given)).tolist()


def measure(trial: xp.Trial, kind: Kind, kept: Sequence[Tensor], given: argparse.Namespace) -> list[Row]:
    """Time the ways on one kind in turns, then compare what they gave."""
    chosen = kind.name if kind.in_decoder else f"{kind.name}@{'|'.join(map(str, frames(kept[0].shape[1], given)))}"
    found: dict[str, Any] = {}

    def ours() -> None:
        found[OURS] = xp.patch_any(trial, sites=chosen, rows=given.rows)

    sites = select(trial, chosen)
    some = sample(sites, given)
    with torch.inference_mode():
        heard = trial.module.model.encoder(trial.corrupt["input_features"])[0]

    def hooks(way: str) -> None:
        ready = heard if way == HANDED else None
        found[way] = [value for each in some for value in by_hooks(trial, kind, each, kept, ready)]

    ways: dict[str, Callable[[], None]] = {WHOLE: partial(hooks, WHOLE), HANDED: partial(hooks, HANDED), OURS: ours}
    if not kind.in_decoder:
        del ways[HANDED]
    cpu: dict[str, list[float]] = {way: [] for way in ways}

    def metered(way: str) -> None:
        began = time.process_time()
        ways[way]()
        cpu[way].append(time.process_time() - began)

    spent = in_turns({way: partial(metered, way) for way in ways}, given.repeat, torch.device("cpu"))
    timed = [site for each in some for site in each]
    rows = []
    for way in ways:
        count = len(sites if way == OURS else timed)
        error = 0.0 if way == OURS else error_of(found[OURS], found[way], timed)
        ratios = [ratio(each[way], each[OURS]) * len(sites) / count if error <= SAME else None for each in (spent, cpu)]
        apiece = ([seconds / count for seconds in each[way]] for each in (spent, cpu))
        rows.append(Row(kind.name, way, *apiece, count, len(sites), *ratios, error))
    return rows


def frames(length: int, given: argparse.Namespace) -> list[int]:
    """Return some frames of the encoder, spread over its first quarter: a short clip ends early."""
    return [(number + 1) * length // 4 // (given.frames + 1) for number in range(given.frames)]


def sample(sites: Sequence[xp.Site], given: argparse.Namespace) -> list[tuple[xp.Site, ...]]:
    """Draw batches of sites of one layer, among the fullest, as `patch_any` makes them."""
    layers = [tuple(own) for _, own in groupby(sites, key=lambda site: site.layer)]
    every = [own[first : first + given.rows] for own in layers for first in range(0, len(own), given.rows)]
    full = [part for part in every if len(part) == max(map(len, every))]
    order = np.random.default_rng(given.seed).permutation(len(full))
    return [full[number] for number in order[: given.batches]]


def error_of(effects: xp.Effects, values: Sequence[float], sites: Sequence[xp.Site]) -> float:
    """Return the largest difference relative to the largest effect."""
    own = (effects.base + effects.raw)[[effects.sites.index(site) for site in sites], 0]
    return float(np.abs(own - np.array(values)).max() / np.abs(effects.raw).max())


def table(title: str, rows: Sequence[Row]) -> Table:
    """Lay all rows out."""
    headers = ("runs/s", "× slower", "runs/CPU s", "× slower", "difference", "timed")
    out = make_table(title, ("sites", "way", *headers), left=2)
    for row in rows:
        rates = [f"{1 / median(each):.3g}" for each in (row.seconds, row.cpu)]
        slower = ["" if row.way == OURS else factor(each) for each in (row.ratio, row.cpu_ratio)]
        measured = rates[0], slower[0], rates[1], slower[1], f"{row.error:.0e}"
        out.add_row(row.kind, row.way, *measured, f"{row.timed} of {row.sites}")
    return out


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="whisper-base")
    parser.add_argument("--real", action="store_true", help="Whisper-base's weights, and the clip of the tests")
    parser.add_argument("--tokens", type=int, default=16, help="the decoder's, prompt included")
    parser.add_argument("--frames", type=int, default=4, help="of the encoder, each in every layer")
    parser.add_argument("--rows", type=int, default=8, help="patched runs in a batch")
    parser.add_argument("--batches", type=int, default=1, help="that hooks run; patch_any runs all")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "any_model.json")
    given = parser.parse_args(arguments)
    given.device = "cpu"
    if given.real and given.shape != "whisper-base":
        parser.error("--real is for --shape whisper-base")
    return given


if __name__ == "__main__":
    main()
