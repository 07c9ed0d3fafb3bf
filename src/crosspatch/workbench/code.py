"""Python that reproduces what was found, without a workbench."""

from collections.abc import Sequence

from crosspatch.models.model import Model
from crosspatch.workbench.asked import AskedPair
from crosspatch.workbench.state import Result


def script_of(model: Model, results: Sequence[Result]) -> str:
    """Write a script: the model opened, each pair made once, each question asked once."""
    lines = ["import crosspatch as xp", "", _opening(model), ""]
    pairs: list[AskedPair] = []
    for number, result in enumerate(results, 1):
        if result.asked.pair not in pairs:
            pairs.append(result.asked.pair)
            lines += [*_task(f"task_{len(pairs)}", result.asked.pair), ""]
        task = f"task_{pairs.index(result.asked.pair) + 1}"
        lines += [*_question(f"found_{number}", task, result), ""]
    return "\n".join(lines)


def _opening(model: Model) -> str:
    if model.opened is None:
        return "model = xp.open_model(module, tokenizer=tokenizer)  # the module that the workbench was given"
    dtype = str(next(model.module.parameters()).dtype).removeprefix("torch.")
    if model.layout is not None:  # it says where the weights are, and in what precision
        return f"model = xp.open_model({model.opened!r}, layout=xp.{model.layout!r})"
    more = "" if model.device.type == "cpu" else f", device={str(model.device)!r}"
    more += "" if dtype == "float32" else f", dtype={dtype!r}"
    return f"model = xp.open_model({model.opened!r}{more})"


def _task(name: str, pair: AskedPair) -> list[str]:
    return [
        f"{name} = xp.tasks.from_texts(",
        "    model,",
        f"    [{pair.clean!r}],",
        f"    [{pair.corrupt!r}],",
        f"    right=[{pair.right!r}],",
        f"    wrong=[{pair.wrong!r}],",
        *([] if pair.answers == "one token" else [f"    answers={pair.answers!r},"]),
        ")",
    ]


def _question(name: str, task: str, result: Result) -> list[str]:
    asked, metric = result.asked, result.effects.metric
    call = "patched_logits" if result.joint else "patch"
    effects = f"{name}.effects" if result.joint else name
    return [
        f"{name} = xp.{call}(",
        f"    model, {task}, sites={asked.sites!r}, direction={asked.direction!r}, metric={metric!r}",
        ")",
        f"print({effects}.top(5))",
    ]
