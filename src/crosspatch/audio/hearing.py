"""Transcripts: what a Whisper writes down for clips, word for word the same each time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from crosspatch.audio.features import log_mel
from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.draw import Display, Displayed, shown
from crosspatch.models.checkpoint import quiet
from crosspatch.models.whisper import as_heard, languages

TASKS = ("transcribe", "translate")
_BATCH = 8  # clips that are decoded together
MAX_TOKENS = 224  # half of what the decoder holds, as openai-whisper's decoding does


@dataclass(frozen=True, slots=True)
class Transcript(Displayed):
    """What a model wrote for one clip.

    `tokens` begin with the prompt (start, language, task, no times), of `prompt` tokens, and hold the end of text where
    the model came to it; `ended` tells whether it did. `language` is its code, given or detected.
    """

    text: str
    tokens: tuple[int, ...]
    prompt: int
    language: str
    ended: bool

    def display(self) -> Display:
        """Show the text, its language and its length."""
        new = len(self.tokens) - self.prompt
        cut = () if self.ended else ("It was cut short: the end of text did not come.",)
        return Display(f"Transcript ({self.language}, {new} tokens): {shown(self.text)}", notes=cut)


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
    _check_room(module, code, task, max_tokens)
    mel = log_mel(processor, clips).mel.to(device=module.device, dtype=module.dtype)
    heard = (module.get_encoder()(part).last_hidden_state for part in mel.split(_BATCH))
    return _written(module, processor, heard, code, (task, max_tokens))


def write_down(
    module: Any,
    processor: Any,
    heard: Float[torch.Tensor, "clip frame d_model"],
    *,
    language: str | None = None,
    max_tokens: int = MAX_TOKENS,
) -> tuple[Transcript, ...]:
    """Write down what the encoder gave for clips, or what stands in its place, as `transcribe` does.

    Raises UnknownName and BadInput as `transcribe` does, BadInput for states of another shape.
    """
    _check_module(module)
    code = _code(module, language, "transcribe")
    if heard.ndim != 3 or heard.shape[1:] != (module.config.max_source_positions, module.config.d_model):
        wanted = ["clip", module.config.max_source_positions, module.config.d_model]
        raise BadInput(f"states of shape {list(heard.shape)}: give {wanted}, as the encoder does.")
    _check_room(module, code, "transcribe", max_tokens)
    return _written(module, processor, heard.split(_BATCH), code, ("transcribe", max_tokens))


def _written(
    module: Any, processor: Any, heard: Iterable[torch.Tensor], code: str | None, how: tuple[str, int]
) -> tuple[Transcript, ...]:
    """Decode clips, those of a part together; `how` is the task and the most tokens."""
    tokenizer, (task, max_tokens) = getattr(processor, "tokenizer", processor), how
    said: list[Transcript] = []
    with quiet(), torch.no_grad():
        for states in map(as_heard, heard):
            spoken = [code] * len(states.last_hidden_state) if code else _detect(module, states)
            texts = _generate(module, states, spoken, task, max_tokens)
            for own, text in zip(spoken, texts, strict=True):
                said.append(_transcript(tokenizer, speech_prompt(module, own, task), text, own, max_tokens))
    return tuple(said)


def _check_room(module: Any, code: str | None, task: str, max_tokens: int) -> None:
    room = module.config.max_target_positions - len(speech_prompt(module, code or "en", task))
    if not 1 <= max_tokens <= room:
        raise BadInput(f"max_tokens={max_tokens} is not between 1 and {room}, which the decoder holds.")


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


def speech_prompt(module: Any, code: str, task: str) -> tuple[int, ...]:
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
    # times that a model writes all the same would make generate cut the clip there and begin again, 30 times over
    greedy = {"do_sample": False, "num_beams": 1, "return_timestamps": False, "suppress_tokens": suppressed(module)}
    rows = module.generate(encoder_outputs=heard, max_new_tokens=max_tokens, **greedy, **about).tolist()
    end = module.generation_config.eos_token_id
    return [row[: row.index(end)] if end in row else row for row in rows]


def suppressed(module: Any) -> list[int]:
    """Return the tokens that a Whisper never writes down here: those of its settings, and times."""
    settings = module.generation_config
    times = range(settings.no_timestamps_token_id + 1, module.config.vocab_size)
    return sorted({*(settings.suppress_tokens or ()), *times})


def _transcript(tokenizer: Any, prompt: tuple[int, ...], text: list[int], code: str, max_tokens: int) -> Transcript:
    ended = len(text) < max_tokens
    tokens = (*prompt, *text, *((tokenizer.eos_token_id,) if ended else ()))
    return Transcript(tokenizer.decode(text, skip_special_tokens=True).strip(), tokens, len(prompt), code, ended)
