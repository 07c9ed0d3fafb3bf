"""Does the encoder hear what it expects: one ambiguous sound in two contexts, its states swapped between them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.audio.clips import RATE
from crosspatch.core.stats import bootstrap_mean
from crosspatch.draw import Curve
from crosspatch.modules import Trial, patch_any
from crosspatch.sites import Group, Site
from crosspatch.studies.speech.corpus import Clip, level, read_out
from crosspatch.studies.speech.ear import FRAME, Ear
from crosspatch.studies.speech.part import Part
from crosspatch.studies.study import Finding, Lines, Section, Sound, Table, verdict

BEGIN = 3.6  # second at which the word begins in every clip
WINDOW = 1.0  # seconds of the word, and a little silence
VOICE = "slt"


@dataclass(frozen=True)
class Pair:
    """Two words that differ in their first sound, and what each is likely to follow."""

    words: tuple[str, str]
    contexts: tuple[str, str]


PAIRS = (
    Pair(("coffee", "toffee"), ("In the morning he drank a hot cup of", "The children ate a piece of sticky")),
    Pair(("bear", "pear"), ("In the forest they saw a big brown", "From the tree he picked a ripe")),
    Pair(("goat", "coat"), ("The farmer milked the old", "It was cold, so she put on a warm")),
    Pair(("cold", "gold"), ("In winter the water is very", "The ring is made of pure")),
    Pair(("card", "guard"), ("She sent him a birthday", "At the gate stood an armed")),
    Pair(("pill", "bill"), ("The doctor gave her a sleeping", "After dinner the waiter brought the")),
    Pair(("bath", "path"), ("She was dirty and took a hot", "They walked along a narrow")),
    Pair(("fan", "van"), ("It was hot, so he turned on the", "They loaded the boxes into the")),
    Pair(("lock", "rock"), ("He turned the key in the", "They climbed on a big, heavy")),
    Pair(("mouse", "house"), ("The cat caught a little grey", "The family bought a large new")),
    Pair(("deer", "beer"), ("In the forest the hunter shot a", "In the pub he drank a glass of")),
    Pair(("king", "ring"), ("The queen sat beside the old", "For the wedding he bought a diamond")),
    Pair(("boat", "coat"), ("They crossed the lake in a small", "It was cold, so she put on a warm")),
    Pair(("cat", "hat"), ("The dog chased the black", "On his head he wore a tall")),
)


def measure(ear: Ear, pairs: int, seed: int) -> Part:
    """Measure how contexts move the choice between two like words, and what of it lies in the states at the word."""
    del seed  # nothing here is drawn
    chosen = [pair for pair in PAIRS if len({ear.first_token(word) for word in pair.words}) == 2][:pairs]
    clips = [[_clip(pair.contexts[side], _blend(pair.words)) for pair in chosen] for side in (0, 1)]
    plain = [[_clip(pair.contexts[0], read_out(pair.words[side], VOICE)) for pair in chosen] for side in (0, 1)]
    prompts = [[(*ear.prompt, *_tokens(ear, pair.contexts[side])) for pair in chosen] for side in (0, 1)]
    answers = torch.tensor([[ear.first_token(word) for word in pair.words] for pair in chosen])
    acoustic = np.array([_gaps(ear, ear.states(each), prompts[0], answers) for each in plain])
    depths = sorted({round(share * ear.layers) for share in (0, 1 / 3, 2 / 3, 1)})
    found = [_swaps(ear, (clips[1 - side], clips[side]), prompts[side], (answers, depths)) for side in (0, 1)]
    shown = ear.mel([clips[0][0], clips[1][0]])
    length = max(len(side[0]) for side in clips)
    arrays = {
        "acoustic": acoustic,
        "congruent": np.array([base for base, _ in found]),
        "swaps": np.array([moved for _, moved in found]),
        "mel": shown.mel[:, :, : max(shown.frames)].float().cpu().numpy(),
        "clips": np.stack([np.pad(side[0], (0, length - len(side[0]))) for side in clips]),
    }
    heard = [said.text for said in ear.write(ear.states([side[0] for side in clips]))]
    facts = {"words": [list(pair.words) for pair in chosen], "contexts": [list(pair.contexts) for pair in chosen]}
    return Part(arrays, {**facts, "heard": heard, "depths": depths})


def _tokens(ear: Ear, text: str) -> tuple[int, ...]:
    return tuple(ear.processor.tokenizer(f" {text}", add_special_tokens=False).input_ids)


def _blend(words: tuple[str, str]) -> Clip:
    """Mix two words half and half, their ends together, where they are alike."""
    one, two = (level(read_out(word, VOICE)) for word in words)
    longest = max(len(one), len(two))
    return 0.5 * (np.pad(one, (longest - len(one), 0)) + np.pad(two, (longest - len(two), 0)))


def _clip(context: str, word: Clip) -> Clip:
    """Put a context in front of a word, silence before it, so that the word begins at the same sample in every clip."""
    before = _trimmed(level(read_out(context, VOICE)))[-int(BEGIN * RATE) :]
    lead = np.zeros(int(BEGIN * RATE) - len(before), np.float32)
    return np.concatenate([lead, before, level(word), np.zeros(int(0.2 * RATE), np.float32)])


def _trimmed(clip: Clip) -> Clip:
    """Cut the silence off the end, so that the word follows as in one breath."""
    loud = np.flatnonzero(np.abs(clip) > 0.02 * np.abs(clip).max())
    return clip[: int(loud[-1]) + 1]


def _gaps(ear: Ear, states: Tensor, prompts: list[tuple[int, ...]], answers: Tensor) -> Float[np.ndarray, " pair"]:
    """Return logit(first word) − logit(second word) after each prompt."""
    with torch.no_grad():
        logits = ear.module(encoder_outputs=(states,), decoder_input_ids=ear.ids(prompts), use_cache=False).logits
    return _difference(logits, [len(prompt) for prompt in prompts], answers).cpu().numpy()


def _difference(logits: Tensor, lengths: list[int], answers: Tensor) -> Float[Tensor, " pair"]:
    last = logits[torch.arange(len(logits)), torch.tensor(lengths) - 1].float()
    right, wrong = (last[torch.arange(len(last)), answers[:, side]] for side in (0, 1))
    return right - wrong


def _swaps(
    ear: Ear, sides: tuple[list[Clip], list[Clip]], prompts: list[tuple[int, ...]], what: tuple[Tensor, list[int]]
) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, "depth pair"]]:
    """Put the states at the word from the run on the first clips into the run on the second, whose text is written.

    Return what the second run says by itself, and how far the swap at each depth of the encoder moves it.
    """
    answers, depths = what
    ids, lengths = ear.ids(prompts), [len(prompt) for prompt in prompts]

    def metric(output: Any, rows: Tensor) -> Tensor:
        return _difference(output.logits, [lengths[row] for row in rows.tolist()], answers[rows])

    inputs = [{"input_features": ear.mel(side).mel, "decoder_input_ids": ids, "use_cache": False} for side in sides]
    trial = Trial(ear.module, inputs[0], inputs[1], metric, len(prompts), name="one sound in two contexts")
    window = range(round(BEGIN / FRAME), round((BEGIN + WINDOW) / FRAME))
    kinds = [("encoder.resid.post", depth - 1) if depth else ("encoder.resid.pre", 0) for depth in depths]
    sites = [
        Group(f"the word after {depth} blocks", tuple(Site(kind, layer, None, at) for at in window))
        for depth, (kind, layer) in zip(depths, kinds, strict=True)
    ]
    effects = patch_any(trial, sites=sites, direction="denoise", rows=8)
    return effects.base, effects.raw


def tell(part: Part) -> tuple[list[Finding], Section]:
    """Say how far contexts move the choice, and how far the encoder's states at the word carry that."""
    whole = part["congruent"][0] - part["congruent"][1]
    swaps = (part["swaps"][1] - part["swaps"][0]) / 2  # side 1 is moved towards the first word, side 0 away from it
    last, acoustic = swaps[-1], part["acoustic"][0] - part["acoustic"][1]
    low, high = (float(b[0]) for b in bootstrap_mean(last[None]))
    found = Finding(
        "The encoder's last states at an ambiguous word "
        + (
            "lean to the word that fits the context it was heard in."
            if low > 0
            else "lean against the word that fits."
            if high < 0
            else "carry no lean to the fitting word that can be told from zero."
        ),
        "The encoder encodes context, not only acoustics: semantic bias lies deep in acoustic representations.",
        verdict(len(last), agrees=low > 0, contradicts=high < 0),
        float(last.mean()),
        low,
        high,
        "logits, when the states at the word alone are swapped",
        len(last),
        "word pairs",
    )
    findings = [
        found,
        _plain("Contexts, as sound and as text together, move the choice between the two words", whole),
        _plain("The sound itself moves the choice, where the words are said plainly", acoustic),
    ]
    x = np.array(part.facts["depths"], dtype=np.float64)
    line = Curve("states at the word", x, swaps.mean(axis=1), *bootstrap_mean(swaps))
    lines = Lines(
        "Swap of the states at the word",
        (line,),
        "encoder layer",
        "logits towards the word that fits the source",
        "bands: 95 % over word pairs. At layer 0 only the edge of the word can differ: the sound is the same",
    )
    rows = tuple(
        ("/".join(words), *(f"{value:+.2f}" for value in numbers))
        for words, *numbers in zip(part.facts["words"], whole, last, acoustic, strict=True)
    )
    table = Table(("words", "contexts", "last states at the word", "sound itself"), rows, "Logits, by word pair")
    marks = ((BEGIN, BEGIN + WINDOW, " + ".join(part.facts["words"][0])),)
    told = zip(part.facts["contexts"][0], part["clips"], part["mel"], part.facts["heard"], strict=True)
    sounds = tuple(
        Sound(f"{context} …", clip.astype(np.float32), mel, heard, marks) for context, clip, mel, heard in told
    )
    words = (
        "Two words, mixed half and half, follow two contexts; the mix is the same sample for sample and begins at the "
        "same frame. What is measured is the logit of the first word's first token minus that of the second's, after "
        "the context as text. Each run keeps its own text, and the encoder's states at the word are patched into it "
        "from the other context's run, both ways.",
    )
    return findings, Section("Context: one sound, two meanings", words, (*sounds, lines, table))


def _plain(said: str, values: Float[np.ndarray, " pair"]) -> Finding:
    low, high = (float(b[0]) for b in bootstrap_mean(values[None]))
    return Finding(
        f"{said}.", "For scale.", "no claim", float(values.mean()), low, high, "logits", len(values), "word pairs"
    )
