"""What the decoder writes down when it hears an early layer of the encoder: the encoder lens, scored by words."""

import numpy as np

from crosspatch.audio import repeats, word_error_rate
from crosspatch.core.stats import bootstrap_mean, share_interval
from crosspatch.draw import Curve
from crosspatch.lenses import encoder_lens
from crosspatch.studies.speech.corpus import SENTENCES, Said, clip_of
from crosspatch.studies.speech.ear import Ear
from crosspatch.studies.speech.part import Part
from crosspatch.studies.study import Finding, Lines, Section, Table

TOKENS = 32
CIRCLES = 4  # how often the end of a transcript comes again for it to count as running in circles


def measure(ear: Ear, sentences: int, seed: int) -> Part:
    """Write down every layer of the encoder for some sentences; score them by word errors and repetitions."""
    said = [Said(text, at, "slt") for at, text in enumerate(SENTENCES[:sentences])]
    clips = [clip_of(each, seed=seed) for each in said]
    lens = encoder_lens(ear.module, ear.processor, clips, language=ear.language, max_tokens=TOKENS)
    texts = [[each.text for each in layer] for layer in lens.transcripts]
    errors = np.array([[word_error_rate(t, s.text) for t, s in zip(row, said, strict=True)] for row in texts])
    circles = np.array(
        [[repeats(each.tokens[each.prompt : -1])[0] >= CIRCLES for each in layer] for layer in lens.transcripts]
    )
    return Part({"errors": errors, "circles": circles}, {"texts": texts, "said": [each.text for each in said]})


def tell(part: Part) -> tuple[list[Finding], Section]:
    """Say from which layer on the words are there, and where the decoder runs in circles."""
    errors, circles = np.minimum(part["errors"], 1.0), part["circles"]
    layers, count = len(errors) - 1, errors.shape[1]
    right = np.array(
        [
            next(layer for layer in range(layers + 1) if (column[layer:] <= 0.2).all() or layer == layers)
            for column in errors.T
        ],
        dtype=np.float64,
    )
    low, high = (float(b[0]) for b in bootstrap_mean(right[None]))
    worst = int(circles[:layers].sum(axis=1).argmax())
    value, least, most = share_interval(int(circles[worst].sum()), count)
    findings = [
        Finding(
            f"A clip's words can be written down from encoder layer {right.mean():.1f} of {layers} on, not before.",
            "The encoder lens is a method of the paper's; its number for Whisper-large-v3 is not known to us.",
            "no claim",
            float(right.mean()),
            low,
            high,
            "layers (0.2 word errors or fewer from there on)",
            count,
            "clips",
        ),
        Finding(
            f"Hearing layer {worst} of the encoder, the decoder runs in circles.",
            "Not reported, as far as we know.",
            "no claim",
            value,
            least,
            most,
            "of clips",
            count,
            "clips",
        ),
    ]
    x = np.arange(layers + 1, dtype=np.float64)
    curves = (
        Curve("word errors (at most 1)", x, errors.mean(axis=1), *bootstrap_mean(errors)),
        Curve("runs in circles", x, circles.mean(axis=1), *bootstrap_mean(circles.astype(np.float64))),
    )
    names = ("embed", *map(str, range(1, layers + 1)))
    rows = tuple((name, *row[:3]) for name, row in zip(names, part.facts["texts"], strict=True))
    text = (
        "The stream after each encoder block goes through the encoder's final norm to the decoder, which writes down "
        f"what it hears there (encoder lens), up to {TOKENS} tokens.",
    )
    lines = Lines("By layer, over clips", curves, "encoder layer", "share", "bands: 95 % over clips")
    table = Table(("layer", *part.facts["said"][:3]), rows, "What the decoder writes down")
    return findings, Section("Encoder lens: what early layers sound like", text, (lines, table))
