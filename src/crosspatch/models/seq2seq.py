"""Decode with an encoder–decoder's own forward: its encoder by itself, then a token a step with its own cache."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crosspatch.core.errors import BadInput
from crosspatch.models.decoding import settings_left_out, stated_ends

_NEEDED = ("decoder_input_ids", "encoder_outputs", "past_key_values", "use_cache")
# What a caller may say about the decoder that a continuation says anew at each step, or cannot continue from.
_PROMPT, _MASK, _CACHE = "decoder_input_ids", "decoder_attention_mask", "use_cache"
_IN_THE_WAY = ("encoder_outputs", "past_key_values", "decoder_inputs_embeds", "decoder_position_ids", "labels")
_USED = ("suppress_tokens=", "begin_suppress_tokens=")  # settings that are honoured here


@dataclass(frozen=True, eq=False)
class EncoderDecoder:
    """An encoder–decoder of transformers: what its two halves are called with, and which tokens it may not say."""

    module: nn.Module
    path: str  # of the encoder

    @classmethod
    def of(cls, module: nn.Module) -> "EncoderDecoder":
        """Find the encoder of a module.

        Raises:
            BadInput: it has none, or its forward does not take what the encoder gave and a cache.
        """
        taken = signature(module.forward).parameters
        get_encoder: Any = getattr(module, "get_encoder", None)
        encoder = get_encoder() if callable(get_encoder) else None
        path = next((path for path, part in module.named_modules() if path and part is encoder), None)
        missing = [name for name in _NEEDED if name not in taken]
        if missing or path is None:
            lacks = f"its forward takes no {missing[0]}" if missing else "get_encoder() gives no part of it"
            raise BadInput(
                f"{type(module).__name__} cannot be continued token by token here: {lacks}. Give an encoder–decoder of "
                "transformers with a head, such as WhisperForConditionalGeneration; for decoder-only language models "
                "use crosspatch.generate."
            )
        return cls(module, path)

    @cached_property
    def _encoder(self) -> nn.Module:
        return self.module.get_submodule(self.path)

    def is_encoder(self, path: str) -> bool:
        """Whether a submodule is the encoder or a part of it."""
        return f"{path}.".startswith(f"{self.path}.")

    def prompt(self, inputs: Any) -> Int[Tensor, "example token"]:
        """Return the tokens that are continued.

        Raises:
            BadInput: there are none, or the inputs hold something that a continuation cannot take up.
        """
        if not isinstance(inputs, Mapping) or not isinstance(ids := inputs.get(_PROMPT), Tensor) or ids.ndim != 2:
            raise BadInput(
                "the trial's inputs must be a mapping of the encoder's input by its name (input_features, input_ids) "
                f"and {_PROMPT}, the tokens to continue, [example, token]."
            )
        if found := [name for name in _IN_THE_WAY if inputs.get(name) is not None]:
            raise BadInput(f"{found[0]} among the inputs: leave it out; the module makes its own while it writes on.")
        if isinstance(mask := inputs.get(_MASK), Tensor) and not bool(mask.all()):
            raise BadInput(
                f"{_MASK} hides some tokens of the prompts: continue prompts of one length, without padding."
            )
        if ids.shape[1] < 1:
            raise BadInput(f"{_PROMPT} is empty: give at least the token that a text starts with.")
        return ids

    def heard(self, inputs: Mapping[str, Any]) -> Any:
        """Run the encoder on those of the inputs that it takes; return what it gives."""
        taken = signature(self._encoder.forward).parameters
        return self._encoder(**{name: value for name, value in self._plain(inputs).items() if name in taken})

    def for_decoder(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of the inputs that each step of the decoder is called with, beside tokens and cache."""
        taken = signature(self._encoder.forward).parameters
        plain = self._plain(inputs)
        return {name: value for name, value in plain.items() if name == "attention_mask" or name not in taken}

    @staticmethod
    def _plain(inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in inputs.items() if name not in (_PROMPT, _MASK, _CACHE, *_IN_THE_WAY)}

    def step(
        self, heard: Any, given: Mapping[str, Any], tokens: Int[Tensor, "row token"], past: Any
    ) -> tuple[Float[Tensor, "row vocab"], Any]:
        """Read tokens behind those in the cache `past`; return the logits of the next ones in float32, and the cache.

        Raises:
            BadInput: the module gives no logits, or keeps no cache.
        """
        output = self.module(
            **given, encoder_outputs=heard, decoder_input_ids=tokens, past_key_values=past, use_cache=True
        )
        logits, kept = getattr(output, "logits", None), getattr(output, "past_key_values", None)
        if not isinstance(logits, Tensor) or kept is None:
            lacks = "no logits" if kept is not None else "no keys and values to go on from"
            raise BadInput(f"{type(self.module).__name__} gives {lacks}: give the class with a language-model head.")
        return logits[:, -1].float(), kept

    @property
    def shares_rows(self) -> bool:
        """Whether attention reads rows that lie in one memory where they lie; the eager one copies them each time."""
        return getattr(getattr(self.module, "config", None), "_attn_implementation", None) == "sdpa"

    def ends(self) -> frozenset[int]:
        """Return the tokens after which nothing is said: those of the generation config, else of the config."""
        return stated_ends(self._settings, getattr(self.module, "config", None))

    def allowed(self, logits: Float[Tensor, "row vocab"], step: int) -> Float[Tensor, "row vocab"]:
        """Return logits of −∞ for tokens that may not be said at a step, as transformers' `generate` has it."""
        said: Collection[int] = getattr(self._settings, "suppress_tokens", None) or ()
        first: Collection[int] = getattr(self._settings, "begin_suppress_tokens", None) or ()
        never = [token for token in (*said, *(first if step == 0 else ())) if 0 <= token < logits.shape[-1]]
        return logits.index_fill(-1, torch.tensor(never, dtype=torch.long, device=logits.device), -torch.inf)

    def left_out(self) -> tuple[str, ...]:
        """List settings of the generation config that would change greedy decoding, and are not used here."""
        return tuple(each for each in settings_left_out(self.module) if not each.startswith(_USED))

    @property
    def _settings(self) -> Any:
        return getattr(self.module, "generation_config", None)
