"""Speech: clips from files and arrays, log-mel spectrograms, transcripts, and synthetic voices."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch.audio.clips import load_audio
    from crosspatch.audio.features import LogMel, log_mel
    from crosspatch.audio.hearing import Transcript, transcribe, write_down
    from crosspatch.audio.scoring import repeats, word_error_rate
    from crosspatch.audio.synthesis import say, voices

_HOME = {
    "LogMel": "features",
    "Transcript": "hearing",
    "load_audio": "clips",
    "log_mel": "features",
    "repeats": "scoring",
    "say": "synthesis",
    "transcribe": "hearing",
    "voices": "synthesis",
    "word_error_rate": "scoring",
    "write_down": "hearing",
}
__all__ = [
    "LogMel",
    "Transcript",
    "load_audio",
    "log_mel",
    "repeats",
    "say",
    "transcribe",
    "voices",
    "word_error_rate",
    "write_down",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crosspatch.audio' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"crosspatch.audio.{_HOME[name]}"), name)
