"""What a task asks of an opened model and its tokenizer: ids of a prompt, ids of an answer, strings to show."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from crosspatch.core.errors import BadInput


@runtime_checkable
class OpenedModel(Protocol):
    """The part of an opened model that tasks use."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    @property
    def module(self) -> Any:
        """The user's own module."""
        ...

    @property
    def tokenizer(self) -> Any:
        """A transformers tokenizer, or None."""
        ...

    @property
    def vocab_size(self) -> int:
        """The number of rows of the embedding."""
        ...


def tokenizer_of(model: OpenedModel) -> Any:
    """Return the model's tokenizer; raise BadInput if it has none or if it has more tokens than the embedding."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise BadInput(
            f"model {model.name!r} has no tokenizer, so prompts cannot be given as text. "
            "Give token ids with from_tokens(clean, corrupt, right=…), or open the model with tokenizer=…."
        )
    # added tokens are left out: published models add image tokens that their text embedding does not hold
    if tokenizer.vocab_size > model.vocab_size:
        raise BadInput(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but model {model.name!r} embeds only "
            f"{model.vocab_size}: they do not belong together. Open the model with its own tokenizer."
        )
    return tokenizer


def encode(model: OpenedModel, text: str) -> tuple[int, ...]:
    """Return the ids of a prompt, with the tokenizer's own special tokens.

    Raises BadInput if the model cannot embed an id, if the text has no token, or if the tokenizer closes the prompt
    with a special token, after which the model would not predict the answer.
    """
    tokenizer = model.tokenizer
    ids = tuple(tokenizer.encode(text))
    check_ids(ids, model.vocab_size, what=f"prompt {text!r}")
    bare = tokenizer.encode(text, add_special_tokens=False)
    if not bare:
        raise BadInput(f"prompt {text!r} has no token.")
    if ids[-1] != bare[-1]:
        raise BadInput(
            f"the tokenizer ends each prompt with the special token {token_strings(tokenizer, ids[-1:])[0]!r}, so the "
            "model would be asked what follows the end. Turn that off (often tokenizer.add_eos_token = False) "
            "or give token ids with from_tokens."
        )
    return ids


def continue_with(tokenizer: Any, prompt: str, *, answer: str) -> tuple[int, ...]:
    """Return the ids that `answer`, exactly as given, adds to the ids of `prompt`.

    Where the two merge into other tokens, the answer is tokenised by itself; raises BadInput if a space at the end of
    the prompt is why, since the model then never sees the tokens it was trained on.
    """
    before = tokenizer.encode(prompt, add_special_tokens=False)
    after = tokenizer.encode(prompt + answer, add_special_tokens=False)
    if after[: len(before)] == before:
        return tuple(after[len(before) :])
    if prompt != prompt.rstrip(" "):
        raise BadInput(
            f"prompt {prompt!r} ends in a space that belongs to the first token of the answer {answer!r}: "
            f"move it there: {prompt.rstrip(' ')!r} and {' ' + answer.lstrip(' ')!r}."
        )
    return tuple(tokenizer.encode(answer, add_special_tokens=False))


def check_ids(ids: Sequence[int], vocab_size: int | None, *, what: str) -> None:
    """Raise BadInput if an id is negative or, when the size is known, outside the model's vocabulary."""
    for each in ids:
        if each < 0 or (vocab_size is not None and each >= vocab_size):
            size = f"0 to {vocab_size - 1}" if vocab_size is not None else "0 and above"
            raise BadInput(
                f"{what} holds token id {each}, but the model's vocabulary is {size}. "
                "Were the ids made with another model's tokenizer, or padded without an attention_mask?"
            )


def token_strings(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Return one string a token as a reader expects it, leading spaces kept; without a tokenizer, the ids."""
    if tokenizer is None:
        return tuple(str(each) for each in ids)
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    return tuple(_readable(tokenizer, each, piece) for each, piece in zip(ids, pieces, strict=True))


def _readable(tokenizer: Any, token: int, piece: str | None) -> str:
    if piece is None:
        return f"<{token}>"
    if piece.startswith("▁"):  # decoding a single piece would drop the space it stands for
        return piece.replace("▁", " ")
    return tokenizer.decode([token], clean_up_tokenization_spaces=False) or piece
