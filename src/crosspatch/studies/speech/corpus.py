"""The clips of the speech study: synthetic voices that say our own sentences, so that nothing is fetched."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32

from crosspatch.audio import say, voices
from crosspatch.audio.clips import RATE
from crosspatch.core.errors import MissingExtra

LOUDNESS = 0.08  # root mean square of every clip, so that no probe can go by how loud a voice is
Clip = Float32[np.ndarray, "_"]  # samples; two clips of one call may differ in length

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Please bring a cup of coffee to the table.",
    "We will meet again on Monday morning.",
    "The train was late because of the snow.",
    "My sister bought a new house near the river.",
    "The children are playing in the garden.",
    "He opened the window and looked outside.",
    "The doctor asked me to come back tomorrow.",
    "There was a long line in front of the shop.",
    "She wrote a letter to her old friend.",
)
# The same ten sentences, so that what is said tells no language.
TRANSLATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "en-us": SENTENCES,
        "de": (
            "Der schnelle braune Fuchs springt über den faulen Hund.",
            "Bitte bring eine Tasse Kaffee an den Tisch.",
            "Wir treffen uns am Montagmorgen wieder.",
            "Der Zug hatte wegen des Schnees Verspätung.",
            "Meine Schwester hat ein neues Haus am Fluss gekauft.",
            "Die Kinder spielen im Garten.",
            "Er öffnete das Fenster und schaute hinaus.",
            "Der Arzt bat mich, morgen wiederzukommen.",
            "Vor dem Laden stand eine lange Schlange.",
            "Sie schrieb einen Brief an ihren alten Freund.",
        ),
        "fr": (
            "Le rapide renard brun saute par-dessus le chien paresseux.",
            "Apportez une tasse de café à la table, s'il vous plaît.",
            "Nous nous reverrons lundi matin.",
            "Le train était en retard à cause de la neige.",
            "Ma sœur a acheté une nouvelle maison près de la rivière.",
            "Les enfants jouent dans le jardin.",
            "Il ouvrit la fenêtre et regarda dehors.",
            "Le médecin m'a demandé de revenir demain.",
            "Il y avait une longue file devant le magasin.",
            "Elle a écrit une lettre à son vieil ami.",
        ),
        "es": (
            "El rápido zorro marrón salta sobre el perro perezoso.",
            "Por favor, trae una taza de café a la mesa.",
            "Nos veremos de nuevo el lunes por la mañana.",
            "El tren llegó tarde por culpa de la nieve.",
            "Mi hermana compró una casa nueva cerca del río.",
            "Los niños están jugando en el jardín.",
            "Él abrió la ventana y miró hacia fuera.",
            "El médico me pidió que volviera mañana.",
            "Había una larga fila delante de la tienda.",
            "Ella escribió una carta a su viejo amigo.",
        ),
        "it": (
            "La rapida volpe marrone salta sopra il cane pigro.",
            "Per favore, porta una tazza di caffè al tavolo.",
            "Ci rivedremo lunedì mattina.",
            "Il treno era in ritardo a causa della neve.",
            "Mia sorella ha comprato una casa nuova vicino al fiume.",
            "I bambini stanno giocando nel giardino.",
            "Aprì la finestra e guardò fuori.",
            "Il medico mi ha chiesto di tornare domani.",
            "C'era una lunga fila davanti al negozio.",
            "Lei ha scritto una lettera al suo vecchio amico.",
        ),
    }
)
WOMEN = ("slt", "en-us+f1", "en-us+f2", "en-us+f3", "en-us+f4", "en-us+f5")
MEN = ("rms", "awb", "kal16", "en-us", "en-gb", "en-us+m3")
# Words that are told apart by one consonant or vowel and by more; all of one syllable or two.
WORDS = ("coffee", "river", "window", "table", "garden", "monday", "letter", "doctor", "yellow", "seven")
PITCHES = (25, 75)  # of espeak-ng's scale from 0 to 99


@dataclass(frozen=True)
class Said:
    """What is said: by which voice, at which pitch (espeak-ng's scale; None: the voice's own), in how much noise (dB).

    `sentence` is its number: the same for all translations.
    """

    text: str
    sentence: int
    voice: str
    pitch: int | None = None
    noise: float | None = None


def need_voices() -> None:
    """Raise MissingExtra unless both programs that read out the sentences are installed."""
    there = voices()
    missing = [program for program, voice in (("flite", "slt"), ("espeak-ng", "en-us")) if voice not in there]
    if missing:
        raise MissingExtra(
            f"this study reads out its sentences with {' and '.join(missing)}. Install them, on Debian with: "
            f"apt-get install {' '.join(missing)}"
        )


def clip_of(said: Said, *, seed: int = 0) -> Clip:
    """Return a clip, at one loudness; noise is white, the signal-to-noise ratio `said.noise` in dB."""
    spoken = level(read_out(said.text, said.voice, said.pitch))
    if said.noise is None:
        return spoken
    rng = np.random.default_rng([seed, said.sentence, *said.voice.encode()])
    noise = rng.standard_normal(len(spoken)).astype(np.float32) * LOUDNESS * 10 ** (-said.noise / 20)
    return level(spoken + noise)


def white_noise(seconds: float, *, seed: int = 0) -> Clip:
    """Return white noise at the loudness of all clips."""
    rng = np.random.default_rng([seed, 1])
    return level(rng.standard_normal(int(seconds * RATE)).astype(np.float32))


def level(clip: Clip) -> Clip:
    """Return a clip at the loudness of all clips."""
    return (clip * (LOUDNESS / np.sqrt(np.mean(np.square(clip, dtype=np.float64))))).astype(np.float32)


@cache
def read_out(text: str, voice: str, pitch: int | None = None) -> Clip:
    """Return a text read out, once for all that ask; it must not be written to."""
    return say(text, voice=voice, pitch=pitch)


def by_voices(each: int = 6) -> list[Said]:
    """Every voice says some of the sentences, each voice others."""
    return [
        Said(SENTENCES[at], at, voice)
        for number, voice in enumerate((*WOMEN, *MEN))
        for at in ((number + step) % len(SENTENCES) for step in range(each))
    ]


def by_pitch() -> list[Said]:
    """Two voices say all sentences, low and high."""
    return [
        Said(text, at, voice, pitch=pitch)
        for voice in ("en-us", "en-gb")
        for at, text in enumerate(SENTENCES)
        for pitch in PITCHES
    ]


def by_language() -> list[Said]:
    """Each language's own voice says all sentences."""
    return [Said(text, at, voice) for voice, texts in TRANSLATIONS.items() for at, text in enumerate(texts)]


@dataclass(frozen=True, eq=False)
class Spoken:
    """Words one after another in one clip, with the first and the last second of each."""

    clip: Clip
    words: tuple[str, ...]
    spans: tuple[tuple[float, float], ...]
    voice: str


def word_list(voice: str, words: tuple[str, ...] = WORDS, *, pause: float = 0.4, seed: int = 0) -> Spoken:
    """Return words said one by one by a voice, in an order of its own, with pauses between them."""
    rng = np.random.default_rng([seed, 2, *voice.encode()])
    order: list[str] = [words[i] for i in rng.permutation(len(words)).tolist()]
    silence, parts, spans, at = np.zeros(int(pause * RATE), np.float32), [], [], 0
    for word in order:
        clip = level(read_out(word, voice))
        parts += [silence, clip]
        spans.append(((at + len(silence)) / RATE, (at + len(silence) + len(clip)) / RATE))
        at += len(silence) + len(clip)
    return Spoken(np.concatenate(parts), tuple(order), tuple(spans), voice)
