"""When does the decoder know its next token: a logit lens over its layers, and the layer at which it settles."""

from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from crosspatch.core.stats import bootstrap_mean
from crosspatch.draw import Curve, Panel, shown
from crosspatch.lenses import logit_lens_any
from crosspatch.modules import Trial
from crosspatch.studies.speech.corpus import SENTENCES, Said, clip_of
from crosspatch.studies.speech.ear import Ear
from crosspatch.studies.speech.part import Part
from crosspatch.studies.study import Finding, Heat, Lines, Section, Table

VOICES = ("slt", "rms")
_LITTLE = "the a an of to in on at and was is are her his my me we he she it will for because"
_SMALL = frozenset(_LITTLE.split())


def measure(ear: Ear, sentences: int, seed: int) -> Part:
    """Decode every decoder layer at every token of the model's own transcripts of some sentences by two voices."""
    said = [Said(text, at, voice) for voice in VOICES for at, text in enumerate(SENTENCES[:sentences])]
    states = ear.states([clip_of(each, seed=seed) for each in said])
    written = ear.write(states)
    rows = [each.tokens[:-1] if each.ended else each.tokens for each in written]
    ids = ear.ids(rows)
    inputs = {"encoder_outputs": (states,), "decoder_input_ids": ids, "use_cache": False}
    lengths = {"": [len(row) for row in rows]}  # the decoder is the only stack that runs
    trial = Trial(ear.module, inputs, inputs, _unused, len(said), name="sentences", lengths=lengths)
    view = logit_lens_any(trial, ids, words=ear.words)
    first = written[0].prompt - 1  # the position that predicts the first token of the text
    text = np.array([[first <= at < len(row) for at in range(ids.shape[1])] for row in rows])
    settled = np.where(text, view.saturation, -1)
    chance = np.where(text[:, None], np.exp(view.logprob), np.nan)
    agrees = np.where(text[:, None], view.agrees, np.nan)
    arrays = {"settled": settled, "chance": np.nanmean(chance, axis=2), "agrees": np.nanmean(agrees, axis=2)}
    arrays |= {"first": np.exp(view.logprob[0, :, first : len(rows[0])])}
    reads = range(first, len(rows[0]))
    words = [[view.words_at(0, at)[layer][0][0] for at in reads] for layer in range(view.layers)]
    nexts = [ear.words([*row[1:], ear.end]) for row in rows]
    facts: dict[str, Any] = {
        "texts": [each.text for each in written],
        "next": nexts,
        "words": words,
        "begin": first,
    }
    return Part(arrays, facts)


def _unused(output: Any) -> Tensor:
    return output.logits[:, -1, 0]


def tell(part: Part) -> tuple[list[Finding], Section]:
    """Say where the decoder settles, for all tokens and for little words against others."""
    layers = part["chance"].shape[1] - 1
    settled = np.where(part["settled"] < 0, np.nan, part["settled"])
    each = np.nanmean(settled, axis=1)
    low, high = (float(bound[0]) for bound in bootstrap_mean(each[None]))
    clips, mean = len(each), float(each.mean())
    findings = [
        Finding(
            f"The decoder settles on its next token {layers - mean:.1f} layers before its end, at layer "
            f"{mean:.1f} of {layers}.",
            "The saturation layer is a method of the paper's; its number for Whisper-large-v3 is not known to us.",
            "no claim",
            mean,
            low,
            high,
            "layers",
            clips,
            "clips",
        ),
        _little_words(part, settled),
    ]
    x = np.arange(layers + 1, dtype=np.float64)
    curves = tuple(
        Curve(name, x, values.mean(axis=0), *bootstrap_mean(values.T))
        for name, values in (("probability of the final token", part["chance"]), ("same top token", part["agrees"]))
    )
    tokens = [shown(word) for word in part.facts["next"][0][part.facts["begin"] :]]
    values = part["first"].astype(np.float64)
    hole = np.full_like(values, np.nan)
    names = ("embed", *map(str, range(1, layers + 1)))
    panel = Panel("probability of the final token", values, hole, hole, names, _numbered(tokens))
    rows = tuple((name, *map(shown, row)) for name, row in zip(names, part.facts["words"], strict=True))
    return findings, Section(
        "Decoder: what each layer would say",
        (
            "The decoder's stream after each block, read by the model's own final norm and unembedding (logit lens). "
            "Columns are the tokens of the transcript to come.",
        ),
        (
            Heat(panel, "probability", 1.0, f"heard: {part.facts['texts'][0]}"),
            Lines("By layer, over all clips", curves, "decoder layer", "share", "bands: 95 % over clips"),
            Table(("layer", *tokens), rows, "The likeliest token of each layer"),
        ),
    )


def _numbered(tokens: list[str]) -> tuple[str, ...]:
    return tuple(f"{number} ·{token}" for number, token in enumerate(tokens))


def _little_words(part: Part, settled: Float[np.ndarray, "clip read"]) -> Finding:
    """Compare little words with all others, clip by clip."""
    gaps = []
    for row, nexts in zip(settled, part.facts["next"], strict=True):
        little = np.array([word.strip().lower() in _SMALL for word in nexts])
        there = ~np.isnan(row[: len(little)])
        one, other = row[: len(little)][there & little], row[: len(little)][there & ~little]
        if len(one) and len(other):
            gaps.append(float(one.mean() - other.mean()))
    low, high = (float(bound[0]) for bound in bootstrap_mean(np.array([gaps])))
    return Finding(
        "Little words (the, of, to, …) are settled "
        + ("earlier than other tokens." if high < 0 else "later than other tokens." if low > 0 else "no earlier."),
        "Not reported, as far as we know.",
        "no claim",
        float(np.mean(gaps)),
        low,
        high,
        "layers",
        len(gaps),
        "clips",
    )
