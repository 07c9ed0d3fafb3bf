"""Transcripts: what a Whisper writes down for clips, word for word the same each time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from crosspatch.audio.features import log_mel
from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.models.checkpoint import quiet
from crosspatch.models.whisper import languages

TASKS = ("transcribe", "translate")
_BATCH = 8  # clips that are decoded together
MAX_TOKENS = 224  # half of what the decoder holds, as openai-whisper's decoding does


@dataclass(frozen=True, slots=True)
class Transcript:
    """What a model wrote for one clip.

    `tokens` begin with the prompt (start, language, task, no times), of `prompt` tokens, and hold the end of text where
    the model came to it; `ended` tells whether it did. `language` is its code, given or detected.
    """

    text: str
    tokens: tuple[int, ...]
    prompt: int
    language: str
    ended: bool


def transcribe(
    module: Any,
    processor: Any,
    clips: Sequence[np.ndarray] | np.ndarray,
    *,
    language: str | None = None,
    task: str = "transcribe",
    max_tokens: int = MAX_TOKENS,
) -> tuple[Transcript, ...]:
    """Write down clips of at most 30 s, greedily, by the module's own `generate`, without times.

    `module` is a WhisperForConditionalGeneration, `processor` its processor, `clips` are as `load_audio` gives them.
    `language` is a code ("de") or an English name ("german"); without it, the model detects each clip's. `task`
    "translate" writes English. `max_tokens` bounds the text's tokens, the end included. Models for English alone take
    neither a language nor a translation. A clip's transcript does not depend on the others.

    Raises UnknownName for a language or task that the model does not have, BadInput for what cannot be transcribed.
    """
    _check_module(module)
    code = _code(module, language, task)
    room = module.config.max_target_positions - len(_prompt(module, code or "en", task))
    if not 1 <= max_tokens <= room:
        raise BadInput(f"max_tokens={max_tokens} is not between 1 and {room}, which the decoder holds.")
    mel = log_mel(processor, clips).mel.to(device=module.device, dtype=module.dtype)
    tokenizer = getattr(processor, "tokenizer", processor)
    said: list[Transcript] = []
    with quiet(), torch.no_grad():
        for part in mel.split(_BATCH):
            heard = module.get_encoder()(part)
            spoken = [code] * len(part) if code else _detect(module, heard)
            texts = _generate(module, heard, spoken, task, max_tokens)
            for own, text in zip(spoken, texts, strict=True):
                said.append(_transcript(tokenizer, _prompt(module, own, task), text, own, max_tokens))
    return tuple(said)


def _check_module(module: Any) -> None:
    settings = getattr(module, "generation_config", None)
    if not all(hasattr(settings, name) for name in ("is_multilingual", "no_timestamps_token_id")):
        raise BadInput(
            f"a {type(module).__name__} does not transcribe here: give a WhisperForConditionalGeneration with its "
            "settings of generation, such as load('whisper-base').module."
        )
    if module.training:
        raise BadInput("the module is in training mode: dropout would make its words random. Call .eval() on it first.")


def _code(module: Any, language: str | None, task: str) -> str | None:
    """Return the code of the language to write down; None where it is to be detected."""
    if task not in TASKS:
        raise UnknownName.of("task of speech", str(task), TASKS)
    known = languages(module)
    if not known:
        if language is not None or task != "transcribe":
            asked = f"language={language!r}" if language is not None else f"task={task!r}"
            raise BadInput(f"this model knows English alone: leave out {asked}, or open one such as whisper-base.")
        return "en"
    if language is None:
        return None
    given = str(language).strip().lower().strip("<|>")
    codes = {name: code for code, name in known.items()} | {code: code for code in known}
    if given not in codes:
        raise UnknownName.of("language", str(language), [*known.values(), *known])
    return codes[given]


def _prompt(module: Any, code: str, task: str) -> tuple[int, ...]:
    """Return the tokens that the text follows."""
    settings = module.generation_config
    about = (settings.lang_to_id[f"<|{code}|>"], settings.task_to_id[task]) if settings.is_multilingual else ()
    return (settings.decoder_start_token_id, *about, settings.no_timestamps_token_id)


def _detect(module: Any, heard: Any) -> list[str]:
    names = {number: token.strip("<|>") for token, number in module.generation_config.lang_to_id.items()}
    return [names[number] for number in module.detect_language(encoder_outputs=heard).tolist()]


def _generate(module: Any, heard: Any, spoken: list[str], task: str, max_tokens: int) -> list[list[int]]:
    """Return each clip's tokens behind the prompt, up to the end of text, which is left out."""
    # the task is always said: without it, generate leaves it out of a detected language's prompt, and the text is worse
    about = {"language": spoken, "task": task} if module.generation_config.is_multilingual else {}
    greedy = {"do_sample": False, "num_beams": 1, "return_timestamps": False}
    rows = module.generate(encoder_outputs=heard, max_new_tokens=max_tokens, **greedy, **about).tolist()
    end = module.generation_config.eos_token_id
    return [row[: row.index(end)] if end in row else row for row in rows]


def _transcript(tokenizer: Any, prompt: tuple[int, ...], text: list[int], code: str, max_tokens: int) -> Transcript:
    ended = len(text) < max_tokens
    tokens = (*prompt, *text, *((tokenizer.eos_token_id,) if ended else ()))
    return Transcript(tokenizer.decode(text, skip_special_tokens=True).strip(), tokens, len(prompt), code, ended)
