"""Open the job of an estimate in another process."""

from pathlib import Path

from crosspatch.attribution.estimators import Estimator
from crosspatch.attribution.sweep import EstimateSweep, like
from crosspatch.core.errors import CorruptFile
from crosspatch.engine import shipping
from crosspatch.engine.shipping import QuestionData
from crosspatch.engine.units import SweepJob
from crosspatch.models.model import Model


def open_job(folder: Path, device: str | None = None) -> SweepJob:
    """Open the estimates that a journal's plan describes, on a device; for workers.

    Raises:
        CorruptFile, BadInput: as for a plain sweep.
    """
    return shipping.open_job(folder, device, build=_sweep)


def _sweep(question: QuestionData, model: Model) -> EstimateSweep:
    plain = shipping.plain_sweep(question, model)
    try:
        how = Estimator.from_json(question.more["estimator"])
        checkpoint = bool(question.more["checkpoint"])
    except (KeyError, TypeError) as error:
        raise CorruptFile(f"the plan holds no estimator that this crosspatch knows: {error}.") from error
    return like(plain, how, checkpoint=checkpoint)
