"""Repetition: clips that set the decoder running in circles, and which parts of it stop that when they are patched."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Bool

from crosspatch.audio import repeats
from crosspatch.audio.clips import RATE
from crosspatch.audio.hearing import suppressed
from crosspatch.audio.scoring import words_of
from crosspatch.core.stats import share_interval
from crosspatch.draw import Panel
from crosspatch.modules import Trial, generate_any
from crosspatch.modules.decoded import Decoded
from crosspatch.studies.speech.corpus import Clip, level, read_out, white_noise
from crosspatch.studies.speech.ear import Ear
from crosspatch.studies.speech.part import Part
from crosspatch.studies.study import Finding, Heat, Section, Sound, Table, verdict

_SAID = "no stop ding knock yes la take hey go one bye tea up down beep run wow tap hi two"
WORDS = tuple(_SAID.split())
VOICES = ("slt", "rms")
TIMES = 10  # how often a word is said
TOKENS = 48  # enough for ten words of three tokens, and for half as many again
KINDS = ("cross", "attn", "mlp")
NAMES = {"cross": "cross-attention", "attn": "self-attention", "mlp": "feed-forward"}


def looped_clip(word: str, voice: str) -> Clip:
    """Return a word said again and again."""
    one = level(read_out(word, voice))
    return np.concatenate([one, np.zeros(RATE // 10, np.float32)] * TIMES)


def measure(ear: Ear, most: int, seed: int) -> Part:
    """Find clips on which the decoder runs in circles; patch each part of it from white noise, and from fewer words."""
    said = [(word, voice) for word in WORDS for voice in VOICES]
    clips = [looped_clip(*each) for each in said]
    states = ear.states(clips)
    written = ear.write(states, max_tokens=TOKENS)
    words = [tuple(each.tokens[each.prompt :]) for each in written]
    running = [number for number, tokens in enumerate(words) if runs_in_circles(tokens, ear.end)]
    chosen = running[:: max(1, len(running) // most)][:most]  # of all words and both voices
    facts: dict[str, Any] = {"tried": len(said), "running": len(running), "said": [list(said[i]) for i in chosen]}
    facts |= {"layers": ear.decoder_layers, "heads": ear.heads, "texts": [written[i].text for i in chosen]}
    if not chosen:
        return Part({"mel": np.zeros((1, 1)), "clip": np.zeros(1)}, facts)
    picked = [clips[i] for i in chosen]
    noise = [white_noise(len(clip) / RATE, seed=seed) for clip in picked]
    fewer = [clip[: len(clip) * 3 // TIMES] for clip in picked]
    arrays: dict[str, np.ndarray] = {}
    for name, source, heads in (("noise", noise, True), ("fewer", fewer, False)):
        found = patched(ear, picked, source, heads=heads)
        arrays |= {f"{name}/{key}": values for key, values in _outcomes(ear, found).items()}
        facts[name] = {
            "sites": [str(site) for site in found.sites],
            "base": [ear.text(row) for row in found.base.tolist()],
            "source": [ear.text(row) for row in found.source.tolist()],
            "texts": [[ear.text(row) for row in rows] for rows in found.tokens.tolist()],
        }
    mel = ear.mel(picked[:1])
    arrays |= {"mel": mel.mel[0, :, : mel.frames[0]].float().cpu().numpy(), "clip": picked[0]}
    return Part(arrays, facts)


def runs_in_circles(tokens: Sequence[int], end: int) -> bool:
    """Whether a transcript did not end, or says the same again more often than the clip does by half."""
    own = [token for token in tokens if token >= 0 and token != end]
    return end not in tokens or repeats(own)[0] > 1.5 * TIMES


def patched(ear: Ear, base: Sequence[Clip], source: Sequence[Clip], *, heads: bool) -> Decoded:
    """Write down clips with each part of the decoder patched at every step from the run on other clips."""
    prompt = ear.ids([ear.prompt] * len(base))

    def inputs(clips: Sequence[Clip]) -> dict[str, Any]:
        return {"input_features": ear.mel(clips).mel, "decoder_input_ids": prompt}

    trial = Trial(ear.module, inputs(source), inputs(base), lambda out: out.logits[:, -1, 0], len(base), name="loops")
    sites = ", ".join(f"decoder.{kind}.out" for kind in KINDS)
    with without_times(ear):
        return generate_any(trial, sites=sites + (", decoder.cross.head" if heads else ""), max_tokens=TOKENS)


@contextmanager
def without_times(ear: Ear) -> Iterator[None]:
    """Let a Whisper write no times while the block lasts, as its transcripts have none."""
    settings = ear.module.generation_config
    before, settings.suppress_tokens = settings.suppress_tokens, suppressed(ear.module)
    try:
        yield
    finally:
        settings.suppress_tokens = before


def _outcomes(ear: Ear, found: Decoded) -> dict[str, np.ndarray]:
    """Tell for each site and clip whether the circle was left, and whether the word is still said then."""
    left = np.array([[not runs_in_circles(row, ear.end) for row in rows] for rows in found.tokens.tolist()])
    loops = [_looped(ear.text(row)) for row in found.base.tolist()]
    kept = np.array(
        [
            [_count(words_of(ear.text(row)), loop) >= TIMES / 2 for row, loop in zip(rows, loops, strict=True)]
            for rows in found.tokens.tolist()
        ]
    )
    return {"left": left, "kept": left & kept}


def _looped(text: str) -> list[str]:
    """Return the words that a text repeats at its end."""
    words = words_of(text)[:-1]  # the last one may be cut off
    return words[-repeats(words)[1] :]


def _count(words: Sequence[str], loop: Sequence[str]) -> int:
    """Count the places, none over another, where a text holds the words of a loop, begun at any of them."""
    turns = [[*loop[i:], *loop[:i]] for i in range(len(loop))]
    counts = []
    for turn in turns:
        count, at = 0, 0
        while at + len(turn) <= len(words):
            hit = list(words[at : at + len(turn)]) == turn
            count, at = count + hit, at + (len(turn) if hit else 1)
        counts.append(count)
    return max(counts, default=0)


def tell(part: Part) -> tuple[list[Finding], Section]:
    """Say what share of the loops each part of the decoder ends, and whether the words are still there."""
    facts = part.facts
    title = "Repetition: what keeps the decoder running in circles"
    if not facts["said"]:
        return [], Section(title, (f"None of {facts['tried']} clips set the decoder running in circles.",))
    left, kept, sites = part["noise/left"], part["noise/kept"], facts["noise"]["sites"]
    cross, other = (_places(sites, kinds) for kinds in (("cross.out",), ("attn.out", "mlp.out")))
    heads = _places(sites, ("cross.head",))
    best, beside, head = (max(some, key=lambda i: left[i].mean()) for some in (cross, other, heads))
    claim = "Patching cross-attention of one layer (23 of 32) from white noise resolves 76 % of repetitions."
    alone = "A single cross-attention head (layer 18, head 13) resolves 78.1 % of repetitions."
    unsaid = "Not reported, as far as we know."
    first = max((best, beside), key=lambda i: left[i].mean())
    findings = [
        _share(
            f"Of cross-attention layers, {_name(sites[best])} patched from white noise ends most loops.",
            claim,
            left[best],
            0.76,
        ),
        _share(f"Of single cross-attention heads, {_name(sites[head])} ends most loops.", alone, left[head], 0.781),
        _share(
            f"Of self-attention and feed-forward layers, {_name(sites[beside])} ends most loops.",
            unsaid,
            left[beside],
        ),
        *(
            _share(
                f"Patched at {_name(sites[place])}, loops are cured: they end with the word still written, about as "
                "often as it was said.",
                unsaid,
                kept[place],
            )
            for place in (best, beside)
        ),
    ]
    text = (
        f"{facts['running']} of {facts['tried']} clips, each a word said {TIMES} times, are written down without an "
        f"end or with the word half as often again as it was said, within {TOKENS} tokens; {len(facts['said'])} of "
        "them are patched. At every step one part of the decoder gets what it has in a run on other sound that reads "
        "the same tokens. A loop is left when the transcript ends in time; the words survive when what was repeated is "
        f"still written {TIMES // 2} times or more.",
        "The best part is the best of many, measured on the same clips: its share is flattered.",
    )
    sound = Sound(
        f"“{facts['said'][0][0]}”, {TIMES} times",
        part["clip"].astype(np.float32),
        part["mel"],
        facts["texts"][0],
    )
    figures = [
        sound,
        _layers_map("left the loop, patched from white noise", left, sites, facts),
        _layers_map("left it and kept the words, from white noise", kept, sites, facts),
        _layers_map("left it and kept the words, from three words", part["fewer/kept"], facts["fewer"]["sites"], facts),
        _heads_map(left, sites, facts),
        _examples(facts, first, head),
    ]
    return findings, Section(title, text, tuple(figures))


def _places(sites: Sequence[str], kinds: tuple[str, ...]) -> list[int]:
    return [number for number, site in enumerate(sites) if any(f".{kind}[" in site for kind in kinds)]


def _name(site: str) -> str:
    return site.removesuffix("@all")


def _share(said: str, claim: str, hits: Bool[np.ndarray, " clip"], claimed: float | None = None) -> Finding:
    """Hold a share against a claimed one: outside of the interval, or in one that is narrow enough to say so."""
    value, low, high = share_interval(int(hits.sum()), len(hits))
    how = "no claim"
    if claimed is not None:
        inside = low <= claimed <= high
        how = verdict(len(hits), agrees=inside and low >= claimed / 2, contradicts=not inside)
    return Finding(said, claim, how, value, low, high, "of loops", len(hits), "clips")


def _layers_map(title: str, values: Bool[np.ndarray, "site clip"], sites: Sequence[str], facts: Any) -> Heat:
    share = np.full((facts["layers"], len(KINDS)), np.nan)
    low, high = share.copy(), share.copy()
    for site, row in zip(sites, values, strict=True):
        for column, kind in enumerate(KINDS):
            if site.startswith(f"decoder.{kind}.out["):
                layer = int(site.split("[")[1].split("]")[0])
                at = layer, column
                share[at], low[at], high[at] = share_interval(int(row.sum()), len(row))
    rows = tuple(map(str, range(facts["layers"])))
    return Heat(Panel(title, share, low, high, rows, tuple(NAMES[kind] for kind in KINDS)), "share of loops", 1.0)


def _heads_map(values: Bool[np.ndarray, "site clip"], sites: Sequence[str], facts: Any) -> Heat:
    share = np.full((facts["layers"], facts["heads"]), np.nan)
    low, high = share.copy(), share.copy()
    for site, row in zip(sites, values, strict=True):
        if site.startswith("decoder.cross.head["):
            layer, head = (int(each) for each in site.split("[")[1].split("]")[0].split(","))
            share[layer, head], low[layer, head], high[layer, head] = share_interval(int(row.sum()), len(row))
    rows, columns = (tuple(map(str, range(facts[name]))) for name in ("layers", "heads"))
    return Heat(Panel("one cross-attention head", share, low, high, rows, columns), "share of loops left", 1.0)


def _examples(facts: Any, best: int, head: int) -> Table:
    found = facts["noise"]
    rows = tuple(
        (f"{word} ({voice})", base, source, found["texts"][best][number], found["texts"][head][number])
        for number, ((word, voice), base, source) in enumerate(
            zip(facts["said"], found["base"], found["source"], strict=True)
        )
    )
    headers = ("said", "written down", "white noise", *(_name(found["sites"][i]) for i in (best, head)))
    return Table(headers, rows, "Transcripts, unpatched and with the best layer and the best head patched")
