"""A typed pair: its task, its tokens side by side, what the model says after each prompt, and likely answers."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from jaxtyping import Float32

from crosspatch.core.errors import BadInput
from crosspatch.engine.logits import PatchedLogits, patched_logits
from crosspatch.engine.sweep import Options
from crosspatch.engine.wording import ONE_PAIR
from crosspatch.models.model import Model
from crosspatch.models.positions import require_positions
from crosspatch.tasks import Task, from_texts, token_strings
from crosspatch.tasks.build import from_tokens
from crosspatch.tasks.tokens import continue_with, encode, tokenizer_of
from crosspatch.workbench.asked import AskedPair
from crosspatch.workbench.state import Limits

TOP = 8  # tokens listed of a distribution
LIKELIER = 10.0  # times by which an answer with a leading space must be likelier to be pointed at

Logits = Float32[np.ndarray, " vocab"]


def task_of(model: Model, asked: AskedPair) -> Task:
    """Make the task of a typed pair, answers filled in. Raises BadInput, UnalignedPair or ManyTokenAnswer."""
    return from_texts(
        model,
        [asked.clean],
        [asked.corrupt],
        right=[asked.right],
        wrong=[asked.wrong],
        name="workbench",
        answers=asked.answers,
    )


def read_pair(model: Model, asked: AskedPair, limits: Limits) -> dict[str, Any]:
    """Describe a pair: tokens, whether they align, both runs' likeliest next tokens, answers and metrics.

    Prompts that do not align are no error here: they are shown, with the reason, to be put right.
    """
    tokenizer_of(model)
    clean, corrupt = (checked_ids(model, text, limits) for text in (asked.clean, asked.corrupt))
    sheet: dict[str, Any] = {"tokens": _tokens(model, clean, corrupt), "aligned": False, "reason": ""}
    if len(clean) != len(corrupt):
        sheet["reason"] = (
            f"The clean prompt has {len(clean)} tokens and the corrupted one {len(corrupt)}: patching needs them "
            "aligned position by position. Swap words for words of as many tokens."
        )
        return sheet
    if clean == corrupt:
        sheet["reason"] = "Both prompts are the same tokens: change in the corrupted one what decides the answer."
        return sheet
    first = _logits(model, from_tokens([clean], [corrupt], right=[0], model=model), "right_logit", limits)
    runs = {"clean": first.source[0], "corrupt": first.base[0]}
    full = _with_answers(model, asked, runs)
    task = task_of(model, full)
    measured = _logits(model, task, None, limits).effects
    return sheet | {
        "aligned": True,
        "right": full.right,
        "wrong": full.wrong,
        "guessed": [side for side in ("right", "wrong") if not getattr(asked, side)],
        "answers": _answers(model, task, runs),
        "metric": task.metric,
        "runs": {name: tops(model, logits) for name, logits in runs.items()},
        "measured": {"clean": float(measured.source[0]), "corrupt": float(measured.base[0])},
        # That it is one pair is said where effects are shown.
        "cautions": [*space_cautions(model, full, runs["clean"]), *_without_one(measured.cautions())],
    }


def _without_one(cautions: Sequence[str]) -> list[str]:
    return [text for text in cautions if text != ONE_PAIR]


def checked_ids(model: Model, text: str, limits: Limits) -> tuple[int, ...]:
    """Return a prompt's ids. Raises BadInput for one without tokens, or with too many."""
    if not text:
        raise BadInput("a prompt is empty: type both, the clean one and the corrupted one.")
    ids = encode(model, text)
    require_positions(model.module, model.anatomy, len(ids))
    if len(ids) > limits.tokens:
        raise BadInput(
            f"a prompt has {len(ids):,} tokens, and the workbench takes {limits.tokens:,} at most: `crosspatch patch` "
            "has no such bound."
        )
    return ids


def _logits(model: Model, task: Task, metric: str | None, limits: Limits) -> PatchedLogits:
    """Read both runs, with a patch that costs next to nothing: the last stream of the last token."""
    site = f"resid.post[{model.anatomy.layers - 1}]@end"
    return patched_logits(model, task, sites=site, metric=metric, options=Options(memory=limits.memory))


def _tokens(model: Model, clean: tuple[int, ...], corrupt: tuple[int, ...]) -> list[dict[str, Any]]:
    shown = [token_strings(model.tokenizer, ids) for ids in (clean, corrupt)]
    return [
        {
            "clean": shown[0][i] if i < len(clean) else None,
            "corrupt": shown[1][i] if i < len(corrupt) else None,
            "differs": clean[i : i + 1] != corrupt[i : i + 1],
        }
        for i in range(max(len(clean), len(corrupt)))
    ]


def chances(logits: Logits) -> Float32[np.ndarray, " vocab"]:
    """Return probabilities."""
    wide = logits.astype(np.float64)
    weight = np.exp(wide - wide.max())
    return (weight / weight.sum()).astype(np.float32)


def tops(model: Model, logits: Logits, k: int = TOP) -> list[dict[str, Any]]:
    """List the likeliest tokens with logit and probability."""
    chance = chances(logits)
    best = np.argsort(-logits, kind="stable")[:k].tolist()
    words = token_strings(model.tokenizer, best)
    return [
        {"token": word, "logit": float(logits[i]), "p": float(chance[i])} for i, word in zip(best, words, strict=True)
    ]


def _with_answers(model: Model, asked: AskedPair, runs: dict[str, Logits]) -> AskedPair:
    """Fill a side without an answer with what its run says next: the first token that can be typed and is no other's.

    What was typed stays. Raises BadInput where no right answer is found.
    """
    right = asked.right or _typable(model, asked.clean, runs["clean"], but=asked.wrong)
    if not right:
        raise BadInput("no likely next token of the clean prompt can be typed as an answer: give the right answer.")
    wrong = asked.wrong or _typable(model, asked.clean, runs["corrupt"], but=right)
    return asked.model_copy(update={"right": right, "wrong": wrong})


def _typable(model: Model, prompt: str, logits: Logits, *, but: Sequence[str]) -> list[str]:
    """Give the likeliest token that can be typed as an answer, none if there is none among the first."""
    taken = {continue_with(model.tokenizer, prompt, answer=text)[:1] for text in but}
    for each in np.argsort(-logits, kind="stable")[: 3 * TOP].tolist():
        text = token_strings(model.tokenizer, [each])[0]
        if (each,) in taken or not text.strip():
            continue
        with suppress(BadInput):
            if continue_with(model.tokenizer, prompt, answer=text) == (each,):
                return [text]
    return []


def _answers(model: Model, task: Task, runs: dict[str, Logits]) -> list[dict[str, Any]]:
    """List the answers' first tokens with their probabilities in both runs."""
    pair, found = task.pairs[0], []
    chance = {name: chances(logits) for name, logits in runs.items()}
    for side, answers in (("right", pair.right), ("wrong", pair.wrong)):
        for answer in answers:
            text = "".join(token_strings(model.tokenizer, answer))
            found.append({"side": side, "token": text, **{name: float(p[answer[0]]) for name, p in chance.items()}})
    return found


def space_cautions(model: Model, asked: AskedPair, logits: Logits) -> list[str]:
    """Point at answers that are much likelier with a space before them: the commonest slip of all."""
    chance, found = chances(logits), []
    for text in (*asked.right, *asked.wrong):
        if text[:1].isspace() or asked.clean[-1:].isspace():
            continue
        own, spaced = (continue_with(model.tokenizer, asked.clean, answer=form) for form in (text, " " + text))
        if own and spaced and float(chance[spaced[0]]) > LIKELIER * float(chance[own[0]]):
            found.append(f"The answer “{text}” has no space before it; “ {text}” is far likelier here. Is that meant?")
    return found
