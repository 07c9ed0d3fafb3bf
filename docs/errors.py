"""Write a page for each error, with an example that is run here and its real message: `python docs/errors.py`."""

import os
import sys
import warnings
from contextlib import chdir, redirect_stderr
from dataclasses import dataclass
from inspect import cleandoc
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from crosspatch.core import errors
from crosspatch.core.errors import CrosspatchError

HERE = Path(__file__).parent / "errors"
# What the examples begin with: a model that is made in a moment, without weights from anywhere.
MODEL = """
import torch
import crosspatch as xp
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
small = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 50}
config = GPT2Config(**small, bos_token_id=0, eos_token_id=0)
module = GPT2LMHeadModel(config).eval()
"""
TASK = """
model = xp.open_model(module)
task = xp.tasks.from_tokens([[2, 7, 5]], [[2, 8, 5]], right=[4], wrong=[6])
"""


@dataclass(frozen=True)
class Page:
    """What is said of one error: what it means, code that raises it ('' where none can be run here), what to do."""

    means: str
    code: str
    do: str
    begin: str = MODEL + TASK

    @property
    def example(self) -> str:
        """The whole code as a reader would type it."""
        return "\n".join((self.begin.strip(), self.code.strip())).strip()


PAGES = {
    "CrosspatchError": Page(
        "The base of all errors that crosspatch raises on purpose. Whatever else comes up is a bug, or torch's own.",
        'xp.patch(model, task, sites="resid.pots")',
        """
        - Catch it where a script shall go on with the next model: `except xp.CrosspatchError as problem: print(problem)`.
        - The command line prints its message and ends with exit code 2; `CROSSPATCH_TRACEBACK=1` shows where it comes from.
        - An error of another class, raised from inside crosspatch, is worth a report, with the traceback.
        """,
    ),
    "UnknownName": Page(
        "A site, model, task, metric, position or unit that does not exist. The message lists what does, the closest name first. It "
        "is a `LookupError` too.",
        'xp.patch(model, task, sites="resid.pots")',
        """
        - Take the name from the list; `crosspatch sites MODEL` prints all sites of a model, `crosspatch tasks` all tasks.
        - A named position, such as `S2`, comes from the task: `task.pairs[0].names` has them.
        - Layers, heads and positions are counted from 0; -1 is the last position.
        """,
    ),
    "BadInput": Page(
        "For instance a module in training mode, a selection that cannot be read, "
        "settings that contradict each other. It is a `ValueError` too.",
        "xp.open_model(module.train())",
        """
        - The message says what was given, what is allowed, and what to change; here: `module.eval()`.
        - Where a site cannot be read, compare with [what can be patched](../../README.md#what-can-be-patched).
        - Where a module is refused as it is (compiled, offloaded by hand), open it before it was changed, or give its name.
        """,
        MODEL,
    ),
    "UnalignedPair": Page(
        "Clean and corrupt prompts that do not match position by position. Patching puts the activation of one position where "
        "another stood, so both prompts need as many tokens. It is a `BadInput`.",
        "xp.tasks.from_tokens([[2, 7, 5]], [[2, 8]], right=[4], wrong=[6])",
        """
        - Choose a replacement with as many tokens: one name for another, one city for another. With a tokenizer, the message shows
          both prompts' tokens.
        - Prompts of *different pairs* may differ in length; only the two of one pair may not.
        - If no replacement fits, corrupt the embeddings instead: `xp.tasks.corrupt(task, "gaussian")` needs no second prompt of its own.
        """,
        "import crosspatch as xp",
    ),
    "ManyTokenAnswer": Page(
        "An answer of several tokens where the metric reads one. `logit_diff` compares two next tokens; a name that the tokenizer "
        "cuts in two has no logit. It is a `BadInput`.",
        "xp.tasks.from_tokens([[2, 7, 5]], [[2, 8, 5]], right=[[[5, 6]]], wrong=[6])",
        """
        - Write the leading space: most tokenizers have one token for `" Mary"` and two for `"Mary"`.
        - `answers="first token"` scores the first token alone: right where the first tokens of right and wrong answers differ.
        - `answers="all tokens"` with the metric `logprob` adds over the answer's tokens.
        - `xp.tasks.keep_known` and `check` tell which prompts a model answers at all.
        """,
        "import crosspatch as xp",
    ),
    "NotProved": Page(
        "A fact about the model that its own outputs contradict, or a model that is no stack of blocks. Parts of a model are found by "
        "convention and proved by a few forwards when it is opened; what fails is refused rather than patched wrongly.",
        """
        xp.open_model(torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 50)).eval())
        """,
        """
        - `crosspatch doctor MODEL` shows each check, with the number by which it failed.
        - Often a single kind of site is refused, with the reason, and the rest works: choose another.
        - Hooks of your own, dropout and adapters that change between calls are common causes: open the module without them.
        - A model of another build can be patched as [any model](../any-model.md): `xp.Trial` with `xp.patch_any`, or `xp.patch_modules` by
          module path.
        """,
        "import torch\nimport crosspatch as xp",
    ),
    "CorruptFile": Page(
        "A result, cache or converted model whose content is not what was written: cut short, edited, or of another version. Each "
        "file is checked against its checksum before its numbers are used.",
        """
        folder = xp.patch(model, task, sites="resid.post").save("effects")
        arrays = next(folder.glob("*.safetensors"))
        arrays.write_bytes(arrays.read_bytes()[:-1])  # a copy that broke off
        xp.load("effects")
        """,
        """
        - Copy the folder again, whole; `crosspatch runs verify DIR` checks all its parts.
        - A run that was killed is *not* corrupt: a torn last record is left out, and the same command goes on.
        - A damaged cache of weights is built again by itself; if that fails, the message names the folder to delete.
        """,
    ),
    "NotFinite": Page(
        "NaN or infinity where a number is needed: in logits, in a metric, in a stream. It is an `ArithmeticError` too.",
        """
        module.transformer.h[0].mlp.c_fc.weight.data[0, 0] = torch.nan
        xp.open_model(module)
        """,
        """
        - Half precision overflows on some models: `xp.open_model(..., dtype="float32")`, or `"bfloat16"` instead of `"float16"`.
        - A metric of your own may divide by zero or take the logarithm of 0 on the example that is named: leave it out, or mend the metric.
        - If it is there in float32 on a plain prompt, the weights hold NaN: load them again.
        """,
        MODEL,
    ),
    "MemoryShortage": Page(
        "Even the smallest piece of work, one pair or one patched run, does not fit. Before that, packs of patches are halved, and "
        "pairs held at once, without a word but in the result's cautions. It is a `MemoryError` too.",
        "",
        """
        - Use shorter prompts, fewer kinds of sites at once (attention patterns take most), or `dtype="bfloat16"`.
        - Close what else lies on the device; `xp.Options(memory=…)` sets the budget where the free memory is not yours alone.
        - [Large models](../large-models.md) spread over devices, memory and disk: `xp.Layout(device_map="auto")`, `--layout device_map=auto`.
        - `xp.plan_patch` tells what a sweep will take before it runs.
        """,
    ),
    "DiskFull": Page(
        "There is no room on disk for results or for a converted model. What was finished is kept, and nothing half-written is left in its "
        "place. It is an `OSError` too.",
        "",
        """
        - Make room and give the same command again, with `--resume`: it goes on where it stood.
        - `crosspatch runs` lists old runs, and removes them. `CROSSPATCH_CACHE` moves the cache of converted weights to another disk.
        """,
    ),
    "WorkerLost": Page(
        "A worker process was killed again and again, mostly by the system for want of memory. One death is made good without a word; this "
        "error means that the same unit, or the opening of the model, killed several. What was finished is kept. It is a "
        "`RuntimeError` too.",
        "",
        """
        - Use fewer workers (each holds a model of its own), or a smaller memory budget, and resume.
        - On a cluster, the message has the scheduler's own words; look there for limits of time and memory.
        - Run once with one worker or `--executor local --workers 1` to see an error that is not about memory. See [scale](../scale.md).
        """,
    ),
    "MissingExtra": Page(
        "An optional package or program that this job needs is not installed. Importing crosspatch and patching need none. It is an "
        "`ImportError` too.",
        """
        import sys
        sys.modules["pandas"] = None  # as if pandas were not installed
        xp.patch(model, task, sites="resid.post").to_frame()
        """,
        """
        - Run the `pip install` of the message, in the environment that runs crosspatch.
        - Extras: `gemma`, `gguf`, `speech`, `ray`, `slurm`, `pandas`, `polars`, `plotly`, `probes`, `quantise`.
        - The numbers are there without pandas: `effects.mean()`, `effects.interval()`, `effects.sites`.
        """,
    ),
    "Interrupted": Page(
        "Stopped by the user. A sweep that meets Ctrl-C does *not* raise it: it returns what is done, with a caution that says how much is "
        "missing. The class is there for programs that want to tell a stop from a failure.",
        "",
        """
        - `effects.cautions()` says what is missing; those sites are NaN.
        - The same command with `--resume` runs the rest, to the same numbers as without the stop. Exit code: 130.
        """,
    ),
}


def message_of(code: str) -> CrosspatchError:
    """Run code in an empty folder and give the error that it raises; what it hides from imports is shown again."""
    before = dict(sys.modules)
    with TemporaryDirectory() as folder, chdir(folder), redirect_stderr(StringIO()), warnings.catch_warnings():
        try:
            exec(compile(code, "example", "exec"), {"__name__": "example"})
        except CrosspatchError as problem:
            return problem
        finally:
            for name in [name for name, module in sys.modules.items() if module is None and before.get(name)]:
                sys.modules[name] = before[name]
    raise AssertionError(f"nothing was raised by:\n{code}")


def cleaned(page: Page) -> Page:
    """Take the indentation of this file off a page's texts."""
    return Page(page.means, cleandoc(page.code), cleandoc(page.do), page.begin)


def classes() -> dict[str, type[CrosspatchError]]:
    """Find the error classes in the order in which they are written."""
    found = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    return {name: value for name, value in found.items() if issubclass(value, CrosspatchError)}


def written(name: str) -> str:
    """Write one page."""
    page, bases = cleaned(PAGES[name]), [base.__name__ for base in classes()[name].__mro__[1:-3]]
    parts = [f"# {name}", (classes()[name].__doc__ or "").strip(), page.means, "## Example"]
    if page.code:
        problem = message_of(page.example)
        parts += [f"```python\n{page.example}\n```", f"```text\n{type(problem).__name__}: {problem}\n```"]
    else:
        parts.append(
            "None: it takes a machine that is full or a process that is killed, so no code is run for this page."
        )
    above = f"Caught by `except` of: {', '.join(f'`{base}`' for base in [name, *bases])}. [All errors](index.md)"
    return "\n\n".join([*parts, "## What to do", page.do, above]) + "\n"


def index() -> str:
    """Write the page of all errors: the tree, and links."""
    about, tree = cleandoc(errors.__doc__ or "").split("\n\n")
    rows = [f"- [{name}]({name}.md): {(value.__doc__ or '').strip()}" for name, value in classes().items()]
    return "\n\n".join(["# Errors", about, f"```text\n{tree}\n```", "\n".join(rows)]) + "\n"


def main() -> dict[str, Any]:
    """Write all pages."""
    HERE.mkdir(exist_ok=True)
    pages = {"index": index()} | {name: written(name) for name in classes()}
    for name, text in pages.items():
        (HERE / f"{name}.md").write_text(text, encoding="utf-8")
    return pages


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
