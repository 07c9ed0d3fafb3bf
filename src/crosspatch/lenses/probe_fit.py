"""Fit one probe with scikit-learn on some examples and predict the others."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from crosspatch.core.errors import MissingExtra
from crosspatch.lenses.probe_data import Probing
from crosspatch.lenses.probe_split import Codes, Places

MOST_STEPS = 500  # of the optimiser


@dataclass(frozen=True, eq=False)
class Fitter:
    """Fits probes of one kind on features `[example, d]`: standardised by the fitted examples alone."""

    features: Float[np.ndarray, "example d"]
    kind: str
    probing: Probing

    def predict(self, labels: Codes, kept: Int[np.ndarray, " kept"], places: Places) -> tuple[Places, bool]:
        """Fit on the kept examples; return predictions at `places`, and whether the optimiser converged.

        Where all kept examples have one label, which happens with drawn labels, that label is predicted.
        """
        given = labels[kept]
        if (given == given[0]).all():
            return np.full(len(places), given[0], dtype=np.int64), True
        probe = self._probe()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            probe.fit(self.features[kept], given)
        unfinished = any(type(each.message).__name__ == "ConvergenceWarning" for each in caught)
        return np.asarray(probe.predict(self.features[places])).astype(np.int64), not unfinished

    def _probe(self) -> Any:
        need_scikit_learn()
        from sklearn.linear_model import LogisticRegression
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        penalty, seed = self.probing.penalty, self.probing.seed
        if self.kind == "linear":
            return make_pipeline(StandardScaler(), LogisticRegression(C=1 / penalty, max_iter=MOST_STEPS))
        hidden = (self.probing.hidden,)
        mlp = MLPClassifier(hidden, solver="lbfgs", alpha=penalty, max_iter=MOST_STEPS, random_state=seed)
        return make_pipeline(StandardScaler(), mlp)


def need_scikit_learn() -> None:
    """Raise MissingExtra unless scikit-learn is installed."""
    try:
        import sklearn.linear_model  # noqa: F401
    except ImportError:
        raise MissingExtra("probes need scikit-learn: pip install 'crosspatch[probes]'") from None
