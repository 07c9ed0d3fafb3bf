"""A Whisper that is studied: what it hears at each layer, what it writes down, and its tokens as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.audio import LogMel, Transcript, log_mel, write_down
from crosspatch.audio.hearing import speech_prompt
from crosspatch.core.errors import BadInput
from crosspatch.lenses.encoder import encoder_streams
from crosspatch.models.load import Loaded
from crosspatch.studies.speech.corpus import Clip

BATCH = 4  # clips that the encoder hears at once
FRAME = 0.02  # seconds of a position of the encoder


@dataclass(frozen=True)
class Ear:
    """A Whisper with its processor."""

    module: Any
    processor: Any
    name: str

    @classmethod
    def of(cls, loaded: Loaded) -> "Ear":
        """Take a loaded Whisper. Raises BadInput for another model."""
        if not hasattr(getattr(loaded.module, "generation_config", None), "no_timestamps_token_id"):
            raise BadInput(
                f"{loaded.name} is a {type(loaded.module).__name__}: the speech study takes a Whisper with its "
                "settings of generation, such as whisper-base or openai/whisper-small."
            )
        return cls(loaded.module, loaded.tokenizer, loaded.name)

    @property
    def layers(self) -> int:
        """Blocks of the encoder."""
        return len(self.module.get_encoder().layers)

    @property
    def decoder_layers(self) -> int:
        """Blocks of the decoder."""
        return len(self.module.get_decoder().layers)

    @property
    def heads(self) -> int:
        """Heads of each attention of the decoder."""
        return int(self.module.config.decoder_attention_heads)

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens that an English transcript follows."""
        return speech_prompt(self.module, "en", "transcribe")

    @property
    def end(self) -> int:
        """The end of text."""
        return int(self.module.generation_config.eos_token_id)

    @property
    def language(self) -> str | None:
        """What to say where the language is English: None for models that know no other."""
        return "en" if self.module.generation_config.is_multilingual else None

    def mel(self, clips: Sequence[Clip]) -> LogMel:
        """Return spectrograms in the module's own type."""
        heard = log_mel(self.processor, clips)
        return LogMel(heard.mel.to(device=self.module.device, dtype=self.module.dtype), heard.frames)

    def states(self, clips: Sequence[Clip]) -> Float[Tensor, "clip position d_model"]:
        """Return what the encoder gives."""
        with torch.no_grad():
            parts = [self.module.get_encoder()(part).last_hidden_state for part in self.mel(clips).mel.split(BATCH)]
        return torch.cat(parts)

    def write(self, states: Tensor, *, max_tokens: int = 60) -> tuple[Transcript, ...]:
        """Write down encoder states as English."""
        return write_down(self.module, self.processor, states, language=self.language, max_tokens=max_tokens)

    def text(self, tokens: Sequence[int]) -> str:
        """Return tokens as text, without special ones."""
        return self.processor.tokenizer.decode([t for t in tokens if t >= 0], skip_special_tokens=True).strip()

    def words(self, tokens: Sequence[int]) -> list[str]:
        """Return each token as text."""
        return [self.processor.tokenizer.decode([token]) for token in tokens]

    def ids(self, rows: Sequence[Sequence[int]]) -> Int[Tensor, "row pos"]:
        """Return rows of tokens where the module is, filled up to one length with the end of text."""
        longest = max(map(len, rows))
        return torch.tensor([[*row, *(self.end,) * (longest - len(row))] for row in rows], device=self.module.device)

    def first_token(self, word: str) -> int:
        """Return the first token of a word that stands within a sentence."""
        return int(self.processor.tokenizer(f" {word}", add_special_tokens=False).input_ids[0])

    def pooled(
        self, clips: Sequence[Clip], spans: Sequence[Sequence[tuple[float, float]]] | None = None
    ) -> Float[np.ndarray, "layer row d_model"]:
        """Return every layer's stream averaged over each clip's own positions, or over spans of seconds, a row each."""
        rows: list[Tensor] = []
        for start in range(0, len(clips), BATCH):
            heard = self.mel(clips[start : start + BATCH])
            layers = torch.stack(encoder_streams(self.module, heard.mel)[0])
            for number, real in enumerate(heard.positions):
                cuts = [(0, real)] if spans is None else [_positions(span) for span in spans[start + number]]
                rows += [layers[:, number, first:last].mean(dim=1) for first, last in cuts]
        return torch.stack(rows, dim=1).float().cpu().numpy()


def _positions(span: tuple[float, float]) -> tuple[int, int]:
    """Return the positions of the encoder that a stretch of seconds covers."""
    first = round(span[0] / FRAME)
    return first, max(first + 1, round(span[1] / FRAME))


def thirds(layers: int) -> tuple[list[int], list[int]]:
    """Return the first and the last third of the layers 1 … layers, one layer at least."""
    many = max(1, round(layers / 3))
    return list(range(1, 1 + many)), list(range(layers - many + 1, layers + 1))
