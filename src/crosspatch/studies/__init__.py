"""Studies: one paper each, its experiments run again on the user's model, and its claims checked."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch.studies.speech.whole import Sizes, load_study, study_speech
    from crosspatch.studies.study import Finding, Study

_HOME = {
    "Finding": "study",
    "Sizes": "speech.whole",
    "Study": "study",
    "load_study": "speech.whole",
    "study_speech": "speech.whole",
}
__all__ = ["Finding", "Sizes", "Study", "load_study", "study_speech"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crosspatch.studies' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"crosspatch.studies.{_HOME[name]}"), name)
