"""Encoder lens: what a speech model's decoder writes down when it hears an intermediate layer of the encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.audio import Transcript, log_mel, write_down
from crosspatch.core.errors import BadInput, NotProved
from crosspatch.draw import Display, Displayed, shown
from crosspatch.replay import Spot, see


@dataclass(frozen=True, repr=False)
class EncoderLens(Displayed):
    """Transcripts by encoder layer, then by clip; layer 0 is what enters the first block, the last one the model's own.

    `lens[2]` are the transcripts of the clips from the stream that leaves two blocks.
    """

    transcripts: tuple[tuple[Transcript, ...], ...]

    def __len__(self) -> int:
        return len(self.transcripts)

    def __getitem__(self, layer: int) -> tuple[Transcript, ...]:
        return self.transcripts[layer]

    def display(self) -> Display:
        """Show what each layer's stream of the first clip is written down as."""
        rows = [(str(layer), shown(said[0].text)) for layer, said in enumerate(self.transcripts)]
        title = f"Encoder lens of {len(self.transcripts[0])} clips, the first by layer"
        return Display(title, ("layer", "written down"), rows, most=len(rows))


def encoder_lens(
    module: Any,
    processor: Any,
    clips: Sequence[np.ndarray] | np.ndarray,
    *,
    language: str | None = None,
    max_tokens: int = 64,
) -> EncoderLens:
    """Let a Whisper's own decoder write down each layer of its encoder: the stream there, through the final norm.

    As DecoderLens does for text (Langedijk et al. 2024, arXiv 2310.03686, section 3), with the encoder's final norm, as
    "Beyond Transcription" does for speech (Glazer et al. 2025, arXiv 2508.15882). `language` None: the language
    that the last layer is heard as, for all layers, so that layers differ in what is heard alone.

    Raises:
        BadInput, UnknownName: as `transcribe` does.
        NotProved: the encoder's last stream through its norm is not what the encoder gives.
    """
    if max_tokens < 1:
        raise BadInput(f"max_tokens={max_tokens}: give 1 or more.")
    clips = [clips] if isinstance(clips, np.ndarray) else list(clips)
    mel = log_mel(processor, clips).mel.to(device=module.device, dtype=module.dtype)
    streams, own = encoder_streams(module, mel)
    last = write_down(module, processor, own, language=language, max_tokens=max_tokens)
    many = module.generation_config.is_multilingual
    codes = [said.language if many else None for said in last]
    layers: list[tuple[Transcript, ...]] = []
    for stream in streams[:-1]:
        with torch.no_grad():
            normed = module.get_encoder().layer_norm(stream)
        written: dict[int, Transcript] = {}
        for code in dict.fromkeys(codes):  # clips of one language together
            own = [clip for clip, each in enumerate(codes) if each == code]
            said = write_down(module, processor, normed[own], language=code, max_tokens=max_tokens)
            written |= zip(own, said, strict=True)
        layers.append(tuple(written[clip] for clip in range(len(codes))))
    return EncoderLens((*layers, last))


def encoder_streams(
    module: Any, mel: Float[Tensor, "clip mel frame"]
) -> tuple[list[Float[Tensor, "clip position d_model"]], Float[Tensor, "clip position d_model"]]:
    """Run a Whisper's encoder once; return its stream before the first block and after each, and what it gives.

    Raises:
        NotProved: its last stream through its norm is not what it gives.
    """
    encoder = module.get_encoder()
    spots = [Spot("layers.0", "input"), *(Spot(f"layers.{number}", "output") for number in range(len(encoder.layers)))]
    output, found = see(encoder, (mel,), spots)
    streams, own = [found[spot] for spot in spots], output.last_hidden_state
    with torch.no_grad():
        if not torch.allclose(encoder.layer_norm(streams[-1]), own, rtol=1e-4, atol=1e-4):
            raise NotProved(f"the last stream of this {type(encoder).__name__}, normed, is not what it gives.")
    return streams, own
