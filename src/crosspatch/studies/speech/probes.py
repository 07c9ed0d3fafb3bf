"""What the encoder's layers hold: probes for speaker, gender, pitch, noise, language and word, held out fairly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from crosspatch.core.stats import bootstrap_ratio
from crosspatch.draw import Curve, number, with_interval
from crosspatch.lenses import Probing, probe_layers
from crosspatch.studies.speech.corpus import (
    MEN,
    PITCHES,
    WOMEN,
    Said,
    by_language,
    by_pitch,
    by_voices,
    clip_of,
    word_list,
)
from crosspatch.studies.speech.ear import Ear, thirds
from crosspatch.studies.speech.part import Part
from crosspatch.studies.study import Finding, Lines, Section, Table, verdict

MARGIN = 0.05  # of accuracy: what is told best late must be told so much better there than early
FOR_SPEAKERS = 5  # sentences a voice without which speakers cannot be told fairly
SPLITS = 5  # draws of held-out groups; their predictions are pooled
NOISES = (10.0, 0.0)  # signal-to-noise ratios in dB
# What the paper says, as two sets of public notes report it: Whisper-large-v3, 32 encoder layers.
CLAIMS: Mapping[str, str] = {
    "gender": "Told best late, at layer 25 of 32 (94.6 %), in Whisper-large-v3.",
    "noise": "Told best late, at layer 27 of 32 (90.0 %), in Whisper-large-v3.",
    "speaker": "Accent of four is told best at layer 22 of 32 (97.0 %); speakers themselves were not probed.",
}


@dataclass(frozen=True, eq=False)
class Asked:
    """A question to probes: rows of the features, their labels, the groups that are held out whole, and their name."""

    rows: Sequence[int]
    labels: Sequence[str]
    groups: Sequence[int | str]
    held_out: str


def measure(ear: Ear, each: int, seed: int) -> Part:
    """Probe every layer of the encoder, and the decoder's for hallucination."""
    plain, pitched, spoken = by_voices(each), by_pitch(), by_language()
    noisy = [Said(s.text, s.sentence, s.voice, noise=NOISES[at % 2]) for at, s in enumerate(plain)]
    said = [*plain, *noisy, *pitched, *spoken]
    features = ear.pooled([clip_of(s, seed=seed) for s in said])
    questions = _questions(said, len(plain), len(pitched))
    lists = [word_list(voice, seed=seed) for voice in (*WOMEN, *MEN)]
    words = ear.pooled([each.clip for each in lists], [each.spans for each in lists])
    word = Asked(
        range(words.shape[1]),
        [w for each in lists for w in each.words],
        [e.voice for e in lists for _ in e.words],
        "voice",
    )
    arrays, facts = {}, {}
    for name, asked in {**questions, "word": word}.items():
        found, about = _probed(words if name == "word" else features, asked, seed)
        arrays |= {f"{name}/{key}": values for key, values in found.items()}
        facts[name] = about
    return Part(arrays, {"concepts": facts, "layers": ear.layers})


def _questions(said: Sequence[Said], plain: int, pitched: int) -> dict[str, Asked]:
    """Return the questions about whole clips; `said` are plain clips, the same in noise, at pitches, in languages."""
    first, both = range(plain), range(2 * plain)
    high = range(2 * plain, 2 * plain + pitched)
    spoken = range(2 * plain + pitched, len(said))
    sentence = [s.sentence for s in said]
    speaker = Asked(first, [said[i].voice for i in first], [sentence[i] for i in first], "sentence")
    # With fewer sentences a voice, some voice has none left to be learnt from, or none held out.
    alone = {"speaker": speaker} if plain >= FOR_SPEAKERS * len((*WOMEN, *MEN)) else {}
    return {
        **alone,
        "gender": Asked(
            first,
            ["woman" if said[i].voice in WOMEN else "man" for i in first],
            [said[i].voice for i in first],
            "voice",
        ),
        "pitch": Asked(
            high,
            ["low" if said[i].pitch == PITCHES[0] else "high" for i in high],
            [sentence[i] for i in high],
            "sentence",
        ),
        "noise": Asked(
            both, ["clean" if said[i].noise is None else "noisy" for i in both], [said[i].voice for i in both], "voice"
        ),
        "language": Asked(spoken, [said[i].voice for i in spoken], [sentence[i] for i in spoken], "sentence"),
    }


def _probed(
    features: Float[np.ndarray, "layer row d_model"], asked: Asked, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Fit a probe a layer on several splits; return for each row how often it was told when it was held out."""
    rows = list(asked.rows)
    tables = {layer: table[rows] for layer, table in enumerate(features)}
    told = np.zeros((len(tables), len(rows)))
    control, times = np.zeros_like(told), np.zeros(len(rows))
    chosen, majority = [], []
    for split in range(SPLITS):
        found = probe_layers(tables, asked.labels, groups=asked.groups, probing=Probing(seed=seed + split, controls=2))
        test = found[found.best].test
        times[test] += 1
        for layer, result in enumerate(found.results):
            told[layer, test] += result.correct
            control[layer, test] += result.control_correct
        chosen.append(int(found.best))
        majority.append(found[found.best].majority)
    arrays = {"told": told, "control": control, "times": times}
    groups, codes = np.unique(np.asarray(asked.groups), return_inverse=True)
    arrays["groups"] = codes.astype(np.int64)
    about = {"classes": len(set(asked.labels)), "rows": len(rows), "groups": len(groups), "chosen": chosen}
    return arrays, {**about, "majority": float(np.mean(majority)), "held_out": asked.held_out}


@dataclass(frozen=True, eq=False)
class Concept:
    """How well one concept is told at each layer, on rows held out, with intervals over groups held out whole."""

    told: Float[np.ndarray, "layer row"]
    control: Float[np.ndarray, "layer row"]
    times: Float[np.ndarray, " row"]
    groups: np.ndarray

    @classmethod
    def of(cls, part: Part, name: str) -> "Concept":
        """Read a concept from what was measured."""
        return cls(*(part[f"{name}/{key}"] for key in ("told", "control", "times", "groups")))

    def share(self, counts: Float[np.ndarray, "any row"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return counts over times held out, and the interval over groups."""
        sums = np.stack([np.bincount(self.groups, weights=row) for row in counts])
        gap = np.bincount(self.groups, weights=self.times)
        there = gap > 0
        return (sums.sum(axis=1) / gap.sum(), *bootstrap_ratio(sums[:, there], gap[there]))

    @property
    def accuracy(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By layer: mean, low, high."""
        return self.share(self.told)

    def late_over_early(self) -> tuple[float, float, float]:
        """Return mean accuracy of the last third of the blocks minus that of the first third."""
        early, late = thirds(len(self.told) - 1)
        found = self.share((self.told[late].mean(axis=0) - self.told[early].mean(axis=0))[None])
        return tuple(float(values[0]) for values in found)  # pyright: ignore[reportReturnType]


def tell(part: Part) -> tuple[list[Finding], Section]:
    """Say for each concept how well it is told, and whether late layers tell it better than early ones."""
    findings, curves, rows = [], [], []
    layers = int(part.facts["layers"])
    x = np.arange(layers + 1, dtype=np.float64)
    for name, about in part.facts["concepts"].items():
        concept = Concept.of(part, name)
        mean, low, high = concept.accuracy
        curves.append(Curve(name, x, mean, low, high))
        findings.append(_finding(name, concept, about))
        selective = concept.share(concept.told - concept.control)
        best = int(np.median(about["chosen"]))
        rows.append(
            (
                name,
                f"{about['classes']} ({number(about['majority'])})",
                f"{about['rows']} / {about['groups']} {about['held_out']}s",
                ", ".join(map(str, about["chosen"])),
                with_interval(float(mean[best]), float(low[best]), float(high[best])),
                with_interval(*(float(values[best]) for values in selective)),
            )
        )
    headers = ("concept", "classes (chance)", "clips or words / groups", "layer chosen, by split")
    table = Table((*headers, "accuracy there", "minus control labels"), tuple(rows), "Probes on held-out groups")
    text = (
        "Linear probes (logistic regression) of each layer's stream, averaged over the clip or the word. Groups are "
        f"held out whole, {SPLITS} splits pooled; the layer is chosen by validation groups. Voices are synthetic: what "
        "is told here need not be told of people.",
    )
    lines = Lines("Accuracy on held-out groups", tuple(curves), "encoder layer", "accuracy", "bands: 95 % over groups")
    return findings, Section("Encoder: what its layers hold", text, (lines, table))


def _finding(name: str, concept: Concept, about: Mapping[str, object]) -> Finding:
    value, low, high = concept.late_over_early()
    mean = concept.accuracy[0]
    groups = int(about["groups"])  # pyright: ignore[reportArgumentType]
    judged = verdict(groups, agrees=low > 0 and value >= MARGIN, contradicts=high < MARGIN)
    how = "better than" if low > 0 else "worse than" if high < 0 else "no better than" if high < MARGIN else "like"
    best, first = float(mean.max()), int(mean.argmax())
    return Finding(
        f"Late encoder layers tell {name} {how} early ones; accuracy reaches {best:.2f} at layer {first} of "
        f"{len(mean) - 1}.",
        CLAIMS.get(name, "Not probed, as far as we know."),
        judged if name in ("gender", "noise") else "no claim",
        value,
        low,
        high,
        "accuracy, last minus first third",
        groups,
        f"{about['held_out']}s",
    )
