"""Log-mel spectrograms: what Whisper hears of a clip."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.audio.clips import RATE
from crosspatch.core.errors import BadInput, NotFinite


@dataclass(frozen=True, slots=True)
class LogMel:
    """Spectrograms of clips, padded with silence to the length that the model takes (Whisper: 30 s, 3000 frames).

    `frames` counts the frames, of 10 ms, that begin before each clip ends. Whisper's encoder has one position for two.
    """

    mel: Float[Tensor, "clip mel frame"]
    frames: tuple[int, ...]

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions of Whisper's encoder, of 20 ms, that begin before each clip ends."""
        return tuple(-(-frames // 2) for frames in self.frames)


def log_mel(extractor: Any, clips: Sequence[np.ndarray] | np.ndarray) -> LogMel:
    """Compute the spectrograms of clips of 16 kHz, each as if it were alone, by the model's own feature extractor.

    `extractor` is a WhisperFeatureExtractor, a processor that has one, or a loaded model with such a processor. A clip
    is a float array `[sample]`, as `load_audio` gives it. The spectrogram is log10 of mel power, floored at 8
    below its largest value, plus 4, over 4 (Radford et al. 2022, section 2.2 and `whisper/audio.py`).

    Raises BadInput for no clips, a clip that is empty, of another shape or type or longer than the model takes, and for
    an extractor of another kind; NotFinite for NaN or infinity.
    """
    own = feature_extractor(extractor)
    clips = [clips] if isinstance(clips, np.ndarray) else list(clips)
    if not clips:
        raise BadInput("there are no clips: give a list of arrays, one at least, as load_audio gives them.")
    for index, clip in enumerate(clips):
        _check(index, clip, own.n_samples)
    floats = [np.asarray(clip, dtype=np.float32) for clip in clips]
    mel = own(floats, sampling_rate=RATE, return_tensors="pt").input_features
    return LogMel(mel.to(torch.float32), tuple(-(-len(clip) // own.hop_length) for clip in clips))


def feature_extractor(given: Any) -> Any:
    """Return the feature extractor that an object is or has; raise BadInput where there is none of 16 kHz."""
    loaded = getattr(given, "tokenizer", None)  # a loaded model's processor; a processor's own tokenizer hears nothing
    candidates = (given, getattr(given, "feature_extractor", None), getattr(loaded, "feature_extractor", None))
    wanted = ("n_samples", "hop_length", "sampling_rate")
    found = next((one for one in candidates if all(hasattr(one, name) for name in wanted)), None)
    if found is None:
        raise BadInput(
            f"a {type(given).__name__} makes no spectrograms: give the processor or feature extractor of a Whisper, "
            "such as load('whisper-base').tokenizer."
        )
    if found.sampling_rate != RATE:
        raise BadInput(f"the feature extractor takes {found.sampling_rate} samples a second, and clips have {RATE}.")
    return found


def _check(index: int, clip: np.ndarray, longest: int) -> None:
    if clip.ndim != 1 or clip.dtype.kind != "f" or not clip.size:
        what = f"{clip.dtype.name} of shape {clip.shape}"
        raise BadInput(f"clip {index} is {what}, not a float array [sample]. load_audio makes one of it.")
    if not np.isfinite(clip).all():
        raise NotFinite(f"clip {index} has samples that are NaN or infinite.")
    if clip.size > longest:
        raise BadInput(
            f"clip {index} takes {clip.size / RATE:.1f} s, and the model hears {longest / RATE:g} s at once. Cut it."
        )
