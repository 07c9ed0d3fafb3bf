"""Run both sides of a page "Coming from …" on one tiny GPT-2 and compare what they name alike.

bench/envs/peers/bin/python bench/coming.py docs/from-nnsight.md …   (python bench/peers.py makes that environment)

Blocks fenced as `py` are the other library's, those fenced as `python` are ours. Both run as files, since nnsight reads
its own source. A name that both sides give a result is compared: metric of the patched run, site by site.
"""

import re
import runpy
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

WORDS = ["When", "Mary", "and", "John", "went", "to", "the", "store", ",", "Anna", "gave", "a", "drink"]
SAME = 1e-4


def stand_in(folder: Path) -> None:
    """Write a GPT-2 of three layers with random weights, and a tokenizer that knows the words of the pages' prompts."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    names = ["<end>", *dict.fromkeys([*WORDS, *(f" {word}" for word in WORDS)])]
    tokenizer = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(" ?[A-Za-z]+|,"), "isolated")
    special = dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), "<end>")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    # Wide draws: with the usual ones nothing that heads do would be seen in the logits.
    sizes = {"n_layer": 3, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": len(names)}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, initializer_range=0.3)
    GPT2LMHeadModel(config).eval().save_pretrained(folder)


def blocks(page: str, language: str) -> str:
    """Join a page's blocks of one fence."""
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))


def numbers(value: Any) -> np.ndarray:
    """Flatten a result: effects as the metric of the patched run, site by site."""
    if hasattr(value, "raw"):
        return (value.raw + value.base).ravel()
    return np.asarray(torch.as_tensor(value).detach(), np.float64).ravel()


def compare(path: Path) -> list[str]:
    """Run a page's two sides; give a line for each name of `RESULTS` that both have."""
    page, told = path.read_text(encoding="utf-8"), []
    with TemporaryDirectory() as place:
        stand_in(Path(place))
        scopes = {}
        for language in ("py", "python"):
            script = Path(place) / f"{language}_side.py"
            script.write_text(blocks(page, language).replace('"gpt2"', repr(place)), encoding="utf-8")
            scopes[language] = runpy.run_path(str(script))
    theirs, ours = scopes["py"], scopes["python"]
    for name in sorted(set(theirs) & set(ours)):
        if isinstance(ours[name], torch.Tensor) or hasattr(ours[name], "raw"):
            one, two = numbers(theirs[name]), numbers(ours[name])
            error = np.abs(one - two).max() if one.shape == two.shape else np.inf
            verdict = "" if error < SAME else " DIFFERS"
            told.append(f"{path.name} {name}: {len(two)} numbers, largest difference {error:.1e}{verdict}")
    return told


if __name__ == "__main__":
    for given in sys.argv[1:]:
        print(*compare(Path(given)), sep="\n")
