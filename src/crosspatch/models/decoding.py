"""Decode with the model's own forward: next-token logits of prompts of one length, with its own cache or without."""

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float32, Int
from torch import Tensor, nn

from crosspatch.core.errors import BadInput
from crosspatch.models.model import Model

# Settings of a generation config that change even what greedy decoding says, and their values that change nothing.
_MOVING: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "num_beams": (1,),
        "repetition_penalty": (1.0,),
        "no_repeat_ngram_size": (0,),
        "min_length": (0,),
        "min_new_tokens": (0,),
        "guidance_scale": (1.0,),
        "penalty_alpha": (),
        "suppress_tokens": ([],),
        "begin_suppress_tokens": ([],),
        "bad_words_ids": ([],),
        "sequence_bias": ({},),
        "forced_bos_token_id": (),
        "forced_eos_token_id": (),
        "exponential_decay_length_penalty": (),
    }
)


@dataclass
class Decoder:
    """Prompts of one length that grow by a token a step; every step is one forward of the user's own module.

    With `cache`, the module keeps keys and values and reads the newest token only; without, it reads all tokens again.
    `everywhere` asks for the logits of all positions it reads, where hooks want to see them.
    """

    model: Model
    ids: Int[Tensor, "row pos"]
    cache: bool = True
    everywhere: bool = False
    past: Any = None

    def next_logits(self) -> Float32[Tensor, "row vocab"]:
        """Run one forward; return the logits of the token to come, in float32, in main memory.

        Raises:
            BadInput: a cache is asked for, and the module keeps none.
        """
        module, fresh = self.model.module, self.ids if self.past is None else self.ids[:, -1:]
        wanted: dict[str, Any] = {"attention_mask": torch.ones_like(self.ids), "past_key_values": self.past}
        wanted |= {} if self.everywhere else {"logits_to_keep": 1}
        taken = signature(module.forward).parameters
        output = module(
            input_ids=fresh,
            use_cache=self.cache,
            **{name: value for name, value in wanted.items() if name in taken and value is not None},
        )
        if self.cache:
            self.past = getattr(output, "past_key_values", None)
            if self.past is None:
                raise BadInput(f"{type(module).__name__} keeps no keys and values between forwards: give cache=False.")
        return output.logits[:, -1].detach().float().cpu()

    def extend(self, tokens: Int[Tensor, " row"]) -> None:
        """Add one token to each row."""
        self.ids = torch.cat([self.ids, tokens.to(self.ids.device)[:, None]], dim=1)


def end_tokens(model: Model) -> frozenset[int]:
    """Return the tokens after which nothing is generated: those of the generation config, else config, tokenizer."""
    module = model.module
    return stated_ends(getattr(module, "generation_config", None), _text_config(module), model.tokenizer)


def stated_ends(*holders: Any) -> frozenset[int]:
    """Return the end tokens that the first holder states which states any."""
    found = None
    for holder in holders:
        found = getattr(holder, "eos_token_id", None) if found is None else found
    return frozenset((found,) if isinstance(found, int) else found or ())


def most_tokens(module: nn.Module) -> int | None:
    """Return how many tokens the model has positions for, None if it does not say."""
    config = _text_config(module)
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
    sizes = (getattr(config, name, None) for name in names)
    return next((size for size in sizes if isinstance(size, int)), None)


def settings_left_out(module: nn.Module) -> tuple[str, ...]:
    """List settings of the module's generation config that would make its own `generate` say something else."""
    config = getattr(module, "generation_config", None)
    given = {name: getattr(config, name, None) for name in _MOVING}
    return tuple(
        f"{name}={value!r}" for name, value in given.items() if value is not None and value not in _MOVING[name]
    )


def _text_config(module: nn.Module) -> Any:
    config: Any = getattr(module, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config
