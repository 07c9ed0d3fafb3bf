"""Where a transcript comes from: encoder frames × layers, decoder tokens × layers, heads, and cross-attention."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.audio.clips import RATE
from crosspatch.core.stats import bootstrap_mean
from crosspatch.draw import Panel, shown
from crosspatch.engine.effects import Effects
from crosspatch.modules import Trial, capture_any, patch_any
from crosspatch.sites import Group, Site
from crosspatch.studies.speech.corpus import SENTENCES, Said, clip_of, white_noise
from crosspatch.studies.speech.ear import FRAME, Ear
from crosspatch.studies.speech.part import Part
from crosspatch.studies.study import Finding, Heat, Pattern, Section, Sound

SHOWN = 1  # the sentence whose maps are drawn
STEP = 10  # positions of the encoder in one column of the map: 0.2 s


def measure(ear: Ear, clips: int, seed: int) -> Part:
    """Patch the run on a clip into one on white noise: frames of the encoder, tokens and heads of the decoder."""
    spoken = clip_of(Said(SENTENCES[SHOWN], SHOWN, "slt"), seed=seed)
    one = _trial(ear, [spoken], seed)
    heard, positions = _heard(ear, one), -(-len(spoken) // round(FRAME * RATE))
    frames = patch_any(one, sites=_windows(ear, positions), rows=8)
    tokens = patch_any(one, sites="decoder.resid.post", rows=32)
    several = [clip_of(Said(text, at, "slt"), seed=seed) for at, text in enumerate(SENTENCES[:clips])]
    heads = patch_any(_trial(ear, several, seed), sites="decoder.cross.head", rows=32)
    mel = ear.mel([spoken])
    length = len(heard) - len(ear.prompt) + 1  # what predicts the text, and its end
    arrays = {
        "frames": _gap_share(frames).reshape(ear.layers + 1, -1),
        "tokens": _gap_share(tokens).reshape(ear.decoder_layers, -1)[:, len(ear.prompt) - 1 :],
        "heads": heads.raw / (heads.source - heads.base),
        "pattern": _cross_attention(ear, one)[-length:, :positions],
        "mel": mel.mel[0, :, : mel.frames[0]].float().cpu().numpy(),
        "clip": spoken,
    }
    words = ear.words([*heard[len(ear.prompt) :], ear.end])
    return Part(arrays, {"words": words, "positions": positions, "clips": clips, "heads": ear.heads})


def _trial(ear: Ear, clips: list[Any], seed: int) -> Trial:
    """Pair clips with white noise as long, and ask for the mean log-probability of what the model writes down."""
    written = ear.write(ear.states(clips))
    rows = [list(each.tokens) for each in written]
    ids = ear.ids([row[:-1] for row in rows])
    first = len(ear.prompt)

    def metric(output: Any, numbers: Tensor) -> Float[Tensor, " row"]:
        chances = output.logits.float().log_softmax(-1)
        found = []
        for place, number in enumerate(numbers.tolist()):
            row = rows[number]
            at = torch.arange(first - 1, len(row) - 1)
            found.append(chances[place, at, torch.tensor(row[first:])].mean())
        return torch.stack(found)

    noise = [white_noise(len(clip) / RATE, seed=seed) for clip in clips]
    inputs = [
        {"input_features": ear.mel(side).mel, "decoder_input_ids": ids, "use_cache": False} for side in (clips, noise)
    ]
    lengths = {"decoder": [len(row) - 1 for row in rows]}
    clean, corrupt = inputs
    return Trial(ear.module, clean, corrupt, metric, len(clips), name="clip against white noise", lengths=lengths)


def _heard(ear: Ear, trial: Trial) -> list[int]:
    return trial.clean["decoder_input_ids"][0].tolist()


def _windows(ear: Ear, positions: int) -> list[Group]:
    """Name the frames of each stretch of the clip, at each layer."""
    kinds = [("encoder.resid.pre", 0), *(("encoder.resid.post", layer) for layer in range(ear.layers))]
    return [
        Group(
            f"layer {depth}, {at * FRAME:.1f} s",
            tuple(Site(kind, layer, None, each) for each in range(at, min(at + STEP, positions))),
        )
        for depth, (kind, layer) in enumerate(kinds)
        for at in range(0, positions, STEP)
    ]


def _gap_share(effects: Effects) -> Float[np.ndarray, " site"]:
    """Return effects as shares of what parts the two runs of the only pair."""
    return effects.raw[:, 0] / (effects.source[0] - effects.base[0])


def _cross_attention(ear: Ear, trial: Trial) -> Float[np.ndarray, "token position"]:
    """Return the cross-attention of the heads that align words with sound, averaged; computed from queries and keys."""
    told = getattr(ear.module.generation_config, "alignment_heads", None)
    chosen = told or [[layer, head] for layer in range(ear.decoder_layers) for head in range(ear.heads)]
    layers = sorted({layer for layer, _ in chosen})
    sites = [Site(f"decoder.cross.{letter}", layer) for layer in layers for letter in "qk"]
    found = capture_any(trial, sites)
    patterns = []
    for layer, head in chosen:
        query, key = (found[Site(f"decoder.cross.{letter}", layer)][0] for letter in "qk")
        width = query.shape[-1] // ear.heads
        own = slice(head * width, (head + 1) * width)
        patterns.append((query[:, own] @ key[:, own].T * _scale(ear, layer, width)).softmax(-1))
    return torch.stack(patterns).mean(dim=0).float().cpu().numpy()


def _scale(ear: Ear, layer: int, width: int) -> float:
    """Return what scores are scaled by."""
    own = ear.module.get_decoder().layers[layer].encoder_attn
    return float(getattr(own, "scaling", width**-0.5))


def tell(part: Part) -> tuple[list[Finding], Section]:
    """Say which cross-attention head brings most of the transcript back, and show where and when it is formed."""
    facts = part.facts
    heads = part["heads"]
    best = int(heads.mean(axis=1).argmax())
    layer, head = divmod(best, facts["heads"])
    low, high = (float(b[0]) for b in bootstrap_mean(heads[best][None]))
    finding = Finding(
        f"One cross-attention head ({layer}.{head}) brings back this much of a transcript's log-probability when the "
        "rest hears white noise.",
        "Not reported, as far as we know.",
        "no claim",
        float(heads[best].mean()),
        low,
        high,
        "of the gap",
        heads.shape[1],
        "clips",
    )
    words = [shown(word) for word in facts["words"]]
    columns = tuple(f"{at * STEP * FRAME:.1f}" for at in range(part["frames"].shape[1]))
    layers, decoder = len(part["frames"]) - 1, len(part["tokens"])
    depth = ("embed", *map(str, range(1, layers + 1)))
    text = (
        "The clip's run is patched into a run on white noise: 1 restores the mean log-probability of the transcript, 0 "
        "changes nothing. Encoder frames in stretches of 0.2 s; a whole layer of the encoder at once restores all, by "
        "construction. Below, the attention of the heads that align words with sound.",
    )
    mean, lows, highs = (values.reshape(decoder, -1) for values in (heads.mean(axis=1), *bootstrap_mean(heads)))
    figures = (
        Sound(f"“{SENTENCES[SHOWN]}”", part["clip"].astype(np.float32), part["mel"], "".join(facts["words"][:-1])),
        _map("encoder: seconds × layer", part["frames"], depth, columns),
        _map("decoder: token × layer", part["tokens"], tuple(map(str, range(decoder))), tuple(_numbered(words))),
        Heat(
            Panel(
                f"cross-attention heads, {heads.shape[1]} clips",
                mean,
                lows,
                highs,
                tuple(map(str, range(decoder))),
                tuple(map(str, range(mean.shape[1]))),
            ),
            "share of the gap",
        ),
        Pattern("Cross-attention of the alignment heads", part["pattern"], tuple(words), facts["positions"] * FRAME),
    )
    return [finding], Section("Where a transcript comes from", text, figures)


def _numbered(words: list[str]) -> list[str]:
    return [f"{number} ·{word}" for number, word in enumerate(words)]


def _map(title: str, values: Float[np.ndarray, "row column"], rows: tuple[str, ...], columns: tuple[str, ...]) -> Heat:
    hole = np.full(values.shape, np.nan)
    return Heat(Panel(title, values.astype(np.float64), hole, hole, rows, columns), "share of the gap")
