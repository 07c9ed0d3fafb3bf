"""Tokenizers and models for the tests of tasks: small, offline, each with the habits of a real family."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from crosspatch.tasks import lexicon
from crosspatch.tasks.lexicon import CAPITAL_TEMPLATES, CAPITALS, IOI_TEMPLATES, NAMES, OBJECTS, PLACES
from crosspatch.tasks.lexicon_facts import FACTS
from crosspatch.tasks.pair import Task

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,'-áó▁"
SIGNS = '+=:()?"\n'
SLOTS = {"{first}", "{second}", "{giver}", "{place}", "{object}", "{city}"}


def lexicon_words() -> list[str]:
    """List every word that the generators can write, without punctuation."""
    texts = [*IOI_TEMPLATES, *CAPITAL_TEMPLATES, *(part for fact in CAPITALS for part in fact)]
    words = {word.strip(".,") for text in texts for word in text.split() if word.strip(".,") not in SLOTS}
    return sorted(words | {*NAMES, *PLACES, *OBJECTS})


def all_words() -> list[str]:
    """List the words of every generator: those above, all word lists, the facts, wordings and capital letters."""
    lists = [words for name in vars(lexicon) if name.isupper() for words in [vars(lexicon)[name]]]
    plain = {part for words in lists for word in words for part in ([word] if isinstance(word, str) else word)}
    told = {wording for wording, _ in FACTS.values()} | {
        part for _, known in FACTS.values() for fact in known for part in fact
    }
    frames = (
        "said that was late because Yesterday Today smiled when is are has have were lasted from year Box man woman"
    )
    parts = {
        word.strip(".,")
        for text in (*plain, *told, frames, "she he that contains param What colour Answer")
        for word in text.split()
    }
    rest = {word for word in parts if "{" not in word} | set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return [*lexicon_words(), *sorted(rest - set(lexicon_words()))]


def piece_tokenizer(
    *,
    everything: bool = False,
    bos: bool = True,
    eos: bool = False,
    prefix: str = "never",
    without: Iterable[str] = (),
    extra: Iterable[str] = (),
) -> PreTrainedTokenizerFast:
    """Make a tokenizer of word pieces with ▁ for a space, as Gemma (prefix "never") and Llama ("always") have.

    Words of the generators are single tokens after a space, those in `without` split into letters; a word at the
    start of a text, without its space, splits too under "never". `extra` adds pieces, `everything` the words of all
    generators instead of those of IOI and capitals.
    """
    whole = [f"▁{word}" for word in (all_words() if everything else lexicon_words()) if word not in set(without)]
    signs = SIGNS if everything else ""
    pieces = dict.fromkeys(["<unk>", "<s>", "</s>", "<pad>", *whole, *extra, *LETTERS, *signs])
    scores = [(piece, -20.0 if len(piece) == 1 else -1.0) for piece in pieces]
    core = Tokenizer(models.Unigram(scores, unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=not extra)
    core.decoder = decoders.Metaspace(prepend_scheme=prefix)
    return _finish(core, bos=bos, eos=eos)


@cache
def byte_tokenizer(bos: bool = False, everything: bool = False) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the generators' own words, as GPT-2 has (Ġ for a space)."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=12_000 if everything else 6000,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    words = all_words() if everything else lexicon_words()
    core.train_from_iterator([f" {word}" for word in words] * 4, trainer)
    return _finish(core, bos=bos, eos=False, unk=None)


def word_tokenizer(bos: bool = True, everything: bool = False) -> PreTrainedTokenizerFast:
    """Make a tokenizer of whole words that forgets spaces, as toy models have."""
    words = all_words() if everything else lexicon_words()
    vocabulary = ["<unk>", "<s>", "</s>", "<pad>", ",", ".", "-", *words]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return _finish(core, bos=bos, eos=False)


def _finish(core: Tokenizer, *, bos: bool, eos: bool, unk: str | None = "<unk>") -> PreTrainedTokenizerFast:
    if bos or eos:
        form = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
        special = [(token, core.token_to_id(token)) for token in ("<s>", "</s>")]
        core.post_processor = processors.TemplateProcessing(single=form, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token=unk
    )


@dataclass(frozen=True)
class StubModel:
    """The part of an opened model that tasks use."""

    tokenizer: Any = None
    module: Any = None
    vocab_size: int = 10_000
    name: str = "stub"


def stub(tokenizer: Any, module: Any = None) -> StubModel:
    """Open a tokenizer as a model with as many embeddings as it has tokens."""
    return StubModel(tokenizer, module, len(tokenizer))


class OnceSeen(torch.nn.Module):
    """Prefer tokens that stand once in the prompt: 10 − 5 × count for those in it, so it solves IOI with margin 5."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab = vocab
        self.dropout = torch.nn.Dropout(0.5)
        self.calls: list[tuple[int, ...]] = []

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return logits [row, pos, vocab] after a dropout that must be off."""
        self.calls.append(tuple(ids.shape))
        counts = torch.nn.functional.one_hot(ids, self.vocab).cumsum(1).float()
        return self.dropout(torch.where(counts > 0, 10 - 5 * counts, 0.0))


class Atlas(torch.nn.Module):
    """Answer prompts that it was told (`[prompt ids] → token id`) with logit 8 at that token, others with zeros."""

    def __init__(self, vocab: int, answers: dict[tuple[int, ...], int], *, form: str = "object") -> None:
        super().__init__()
        self.vocab, self.answers, self.form = vocab, answers, form
        self.kept: list[int] = []

    def forward(self, ids: torch.Tensor, use_cache: bool = True, logits_to_keep: int = 0) -> Any:
        """Return logits in the form asked for; note how many positions were wanted."""
        self.kept.append(0 if use_cache else logits_to_keep)
        logits = torch.zeros(len(ids), ids.shape[1], self.vocab, dtype=torch.bfloat16)
        for row, prompt in enumerate(ids.tolist()):
            if tuple(prompt) in self.answers:
                logits[row, -1, self.answers[tuple(prompt)]] = 8.0
        logits = logits[:, -logits_to_keep:]
        return {"object": SimpleNamespace(logits=logits), "dict": {"logits": logits}, "tuple": (logits, None)}[
            self.form
        ]


def atlas_of(tasks: Sequence[Task], vocab: int, *, forget: Iterable[int] = (), form: str = "object") -> Atlas:
    """Tell an Atlas both sides of the tasks' pairs, but never an answer in `forget`."""
    told: dict[tuple[int, ...], int] = {}
    for pair in (pair for task in tasks for pair in task.pairs):
        told |= {pair.clean: pair.right[0][0], pair.corrupt: pair.wrong[0][0]}
    forgotten = set(forget)
    return Atlas(vocab, {prompt: answer for prompt, answer in told.items() if answer not in forgotten}, form=form)
