"""Probes: classifiers of activations, measured on held-out groups against control labels; one layer, or all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.lenses.probe_data import (
    KINDS,
    Marks,
    Probing,
    Question,
    control_labels,
    permuted_labels,
    read_features,
    read_question,
)
from crosspatch.lenses.probe_fit import MOST_STEPS, Fitter
from crosspatch.lenses.probe_result import ProbeResult
from crosspatch.lenses.probe_split import Codes, Places, Sides, split_examples
from crosspatch.lenses.probed_layers import ProbedLayers


def probe(
    features: Float[np.ndarray, "example d"],
    labels: Sequence[Any] | np.ndarray,
    *,
    kind: str = "linear",
    groups: Marks = None,
    types: Marks = None,
    probing: Probing | None = None,
) -> ProbeResult:
    """Fit a classifier of labels on activations, and measure it on examples held out, against control labels.

    `kind` is "linear" (logistic regression) or "mlp" (one hidden layer), both of scikit-learn, on features standardised
    by the fitted examples. No group (a document, a template, a subject) is on both sides of the split, and intervals
    are drawn over groups. In a control task each type (a word, say; the groups if none are given) has a random label:
    selectivity is accuracy minus accuracy there (Hewitt & Liang 2019). Types on both sides show what a probe can
    memorise; types on one side only leave the control at chance.

    Raises:
        UnknownName: another kind.
        BadInput: features, labels, groups or types that do not fit each other, one class alone, or a class that cannot
            be on both sides of the split.
        NotFinite: features with NaN or infinity.
        MissingExtra: scikit-learn is not installed.

    >>> found = probe(stream_features(model, task)[9], labels, groups=templates)  # doctest: +SKIP
    """
    probing = probing or Probing()
    question = _asked(labels, kind, groups=groups, types=types)
    table = read_features(features, len(question.examples))
    sides = split_examples(question.examples, probing.held_out, seed=probing.seed)
    return _measured(Fitter(table, kind, probing), question, sides)


def probe_layers(
    features: Mapping[Any, Float[np.ndarray, "example d"]],
    labels: Sequence[Any] | np.ndarray,
    *,
    kind: str = "linear",
    groups: Marks = None,
    types: Marks = None,
    probing: Probing | None = None,
) -> ProbedLayers:
    """Probe each layer as `probe` does, on one split for all, and choose the best by validation examples.

    Those are a part of the examples that are not held out, groups kept whole again. Each layer is fitted on the rest
    and scored on them; the test examples have no say in the choice, so the best layer's accuracy on them is fair.

    Raises:
        UnknownName, BadInput, NotFinite, MissingExtra: as `probe` does; BadInput for no layer at all.
    """
    probing = probing or Probing()
    question = _asked(labels, kind, groups=groups, types=types)
    if not isinstance(features, Mapping) or not features:
        raise BadInput("probe_layers takes a mapping from layers to features [example, d], one at least.")
    tables = {str(layer): read_features(table, len(question.examples)) for layer, table in features.items()}
    kept, test = split_examples(question.examples, probing.held_out, seed=probing.seed)
    inner, validation = split_examples(question.examples.take(kept), probing.validation, seed=probing.seed)
    truth = question.examples.labels
    results, correct = [], []
    for table in tables.values():
        fitter = Fitter(table, kind, probing)
        said, _ = fitter.predict(truth, kept[inner], kept[validation])
        correct.append(said == truth[kept[validation]])
        results.append(_measured(fitter, question, (kept, test)))
    chosen_by = question.examples.groups[kept[validation]]
    return ProbedLayers(tuple(tables), tuple(results), np.stack(correct).astype(np.int64), chosen_by)


def _asked(labels: Sequence[Any] | np.ndarray, kind: str, *, groups: Marks, types: Marks) -> Question:
    if kind not in KINDS:
        raise UnknownName.of("kind of probe", kind, KINDS)
    return read_question(labels, groups, types)


def _measured(fitter: Fitter, question: Question, sides: Sides) -> ProbeResult:
    """Fit on one side; predict the other, and both for control labels."""
    probing, examples, (kept, test) = fitter.probing, question.examples, sides
    both, truth = np.concatenate([kept, test]), examples.labels
    said, converged = fitter.predict(truth, kept, both)
    rng = np.random.default_rng(probing.seed)
    controls = [control_labels(question, rng) for _ in range(probing.controls)]
    told = [fitter.predict(labels, kept, both)[0] for labels in controls]
    shape = (probing.controls, len(test))
    return ProbeResult(
        test=test,
        groups=examples.groups[test],
        truth=truth[test],
        predicted=said[len(kept) :],
        control_truth=np.array([labels[test] for labels in controls], dtype=np.int64).reshape(shape),
        control_predicted=np.array([each[len(kept) :] for each in told], dtype=np.int64).reshape(shape),
        classes=examples.classes,
        fitted=len(kept),
        d=fitter.features.shape[1],
        kind=fitter.kind,
        majority=float((truth[test] == np.bincount(truth[kept]).argmax()).mean()),
        fit=float((said[: len(kept)] == truth[kept]).mean()),
        control_fit=_control_fit(controls, told, kept),
        p=_p_value(fitter, question, sides, said[len(kept) :]),
        cautions=_cautions(fitter, question, sides, converged=converged),
        settings=asdict(probing),
    )


def _control_fit(controls: list[Codes], told: list[np.ndarray], kept: Places) -> float:
    found = [(each[: len(kept)] == labels[kept]).mean() for labels, each in zip(controls, told, strict=True)]
    return float(np.mean(found)) if found else float("nan")


def _p_value(fitter: Fitter, question: Question, sides: Sides, said: Places) -> float:
    """Return the share of permuted labels that are predicted as well as the real ones, which count as one draw."""
    count, (kept, test) = fitter.probing.permutations, sides
    if not count:
        return float("nan")
    rng = np.random.default_rng([fitter.probing.seed, 1])
    observed = int((said == question.examples.labels[test]).sum())
    reached = 1
    for _ in range(count):
        labels = permuted_labels(question.examples, rng)
        reached += int((fitter.predict(labels, kept, test)[0] == labels[test]).sum()) >= observed
    return reached / (count + 1)


def _cautions(fitter: Fitter, question: Question, sides: Sides, *, converged: bool) -> tuple[str, ...]:
    (kept, test), d, found = sides, fitter.features.shape[1], []
    if len(kept) < 2 * (d + 1):
        found.append(
            f"{len(kept)} examples for {d} numbers each: hyperplanes can tell any labels of fewer than {2 * (d + 1)} "
            "examples apart as often as not (Cover 1965), so a good fit alone means nothing: held-out groups and "
            "selectivity tell."
        )
    groups = len(np.unique(question.examples.groups[test]))
    if groups < 10:
        found.append(f"only {groups} groups are held out: the interval is rough.")
    shared = np.isin(question.types[test], question.types[kept]).mean()
    if fitter.probing.controls and not shared:
        found.append(
            "no type of a held-out example is among the fitted ones, so control labels can only be guessed: give types "
            "that recur, such as words, to see what the probe memorises."
        )
    if not converged:
        found.append(f"the fit was stopped after {MOST_STEPS} steps, before it converged: raise the penalty.")
    return tuple(found)
