"""Look inside one run: attention, head labels, layers decoded by a logit lens or a tuned one, probes with controls."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch.lenses.encoder import EncoderLens, encoder_lens
    from crosspatch.lenses.head_patterns import HeadPatterns, read_head_patterns
    from crosspatch.lenses.labels import HeadLabels, Repeated, label_heads
    from crosspatch.lenses.lens_view import LensView
    from crosspatch.lenses.probe_data import Probing
    from crosspatch.lenses.probe_result import ProbeResult
    from crosspatch.lenses.probed_layers import ProbedLayers
    from crosspatch.lenses.probing import probe, probe_layers
    from crosspatch.lenses.reading import logit_lens
    from crosspatch.lenses.stacks import logit_lens_any
    from crosspatch.lenses.streams import stream_features
    from crosspatch.lenses.translators import TunedLens
    from crosspatch.lenses.tuning import train_tuned_lens
    from crosspatch.lenses.views import AttentionView, attention

_HOME = {
    "AttentionView": "views",
    "EncoderLens": "encoder",
    "HeadLabels": "labels",
    "HeadPatterns": "head_patterns",
    "LensView": "lens_view",
    "ProbeResult": "probe_result",
    "ProbedLayers": "probed_layers",
    "Probing": "probe_data",
    "Repeated": "labels",
    "TunedLens": "translators",
    "attention": "views",
    "encoder_lens": "encoder",
    "label_heads": "labels",
    "logit_lens": "reading",
    "logit_lens_any": "stacks",
    "probe": "probing",
    "probe_layers": "probing",
    "read_head_patterns": "head_patterns",
    "stream_features": "streams",
    "train_tuned_lens": "tuning",
}
__all__ = [
    "AttentionView",
    "EncoderLens",
    "HeadLabels",
    "HeadPatterns",
    "LensView",
    "ProbeResult",
    "ProbedLayers",
    "Probing",
    "Repeated",
    "TunedLens",
    "attention",
    "encoder_lens",
    "label_heads",
    "logit_lens",
    "logit_lens_any",
    "probe",
    "probe_layers",
    "read_head_patterns",
    "stream_features",
    "train_tuned_lens",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crosspatch.lenses' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"crosspatch.lenses.{_HOME[name]}"), name)
