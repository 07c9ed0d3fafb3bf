"""Whisper from CTranslate2's files: names, fused projections, and all that transformers wants beside the weights."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from crosspatch.core.errors import CorruptFile
from crosspatch.core.files import compact_json
from crosspatch.models.checkpoint import quiet
from crosspatch.models.ct2 import Binary, read_binary

CONVERTER = "v1"  # part of a converted folder's name: raise it when `convert_whisper` writes something else
WEIGHTS, SETTINGS, TOKENIZER = "model.bin", "config.json", "tokenizer.json"  # the files that are converted
_SPEC = "WhisperSpec"
_MULTILINGUAL = 51865  # tokens from which on a Whisper knows languages; those that end in .en have one less
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_TIMESTAMPS = 1501  # tokens for 0.00 s … 30.00 s, which the file of the tokenizer does not list

# CTranslate2's name of a part of a block: what its rows are here, in their order.
_BLOCK: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "self_attention/layer_norm": ("self_attn_layer_norm",),
        "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "self_attention/linear_1": ("self_attn.out_proj",),
        "attention/layer_norm": ("encoder_attn_layer_norm",),
        "attention/linear_0": ("encoder_attn.q_proj",),
        "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
        "attention/linear_2": ("encoder_attn.out_proj",),
        "ffn/layer_norm": ("final_layer_norm",),
        "ffn/linear_0": ("fc1",),
        "ffn/linear_1": ("fc2",),
    }
)
_OUTSIDE = MappingProxyType({"embeddings": "embed_tokens", "position_encodings": "embed_positions"})
_KINDS = MappingProxyType(
    {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "encodings": "weight"}
)
# Switches of the format, with the value that means what transformers' Whisper does; None where it says nothing.
_SWITCHES: Mapping[str, int | None] = MappingProxyType(
    {
        "activation": 3,  # GELU
        "pre_norm": 1,
        "alibi": 0,
        "scale_embeddings": 0,
        "start_from_zero_embedding": 0,
        "alignment_heads": None,  # of translation models; Whisper's own are in the settings
        "alignment_layer": None,
        "num_heads": None,  # read on its own
    }
)


def convert_whisper(pieces: Path, folder: Path) -> None:
    """Write CTranslate2's `model.bin`, `config.json` and `tokenizer.json` as a folder that transformers reads.

    Weights keep their dtype and every bit. Queries, keys and values are separate here, fused there; the bias of the
    keys, which Whisper lacks, must be zero. Raises CorruptFile for files that are damaged or of another model.
    """
    path = pieces / WEIGHTS
    binary = read_binary(path)
    if binary.spec != _SPEC:
        raise CorruptFile(f"{path} holds a {binary.spec}, not a {_SPEC}.")
    try:
        told = json.loads((pieces / SETTINGS).read_bytes())
        tensors = dict(_translated(binary))
        config = _config(binary, tensors)
        _check_complete(config, tensors)
        with quiet():
            tokenizer = _tokenizer(pieces / TOKENIZER, config.vocab_size)
            settings = _generation(config, tokenizer, told)
            for word in _SPECIAL:  # those that are given labels instead of decoder inputs read them here
                setattr(config, word, getattr(settings, word))
            _save(folder, tensors, (config, settings, tokenizer, _extractor(config)))
    except (KeyError, ValueError, TypeError, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise
        what = f"{type(error).__name__}: {error}"
        raise CorruptFile(f"{pieces} holds no Whisper that can be converted ({what}).") from error


def as_heard(states: torch.Tensor) -> Any:
    """Return encoder states in the form in which Whisper's decoder takes what its encoder gave."""
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=states)  # pyright: ignore[reportArgumentType]


def languages(module: torch.nn.Module) -> Mapping[str, str]:
    """Return the languages that a Whisper was trained for, English name by code; empty for a model of English alone."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    settings = getattr(module, "generation_config", None)
    codes = [token.strip("<|>") for token in getattr(settings, "lang_to_id", None) or ()]
    return {code: LANGUAGES.get(code) or code for code in codes}


def _translated(binary: Binary) -> Iterator[tuple[str, torch.Tensor]]:
    """Give each variable under transformers' names, fused ones in parts; refuse what is not known."""
    for name, tensor in binary.variables.items():
        side, _, rest = name.partition("/")
        if side not in ("encoder", "decoder"):
            raise ValueError(f"unknown variable {name!r}")
        if rest in _SWITCHES:
            meant = _SWITCHES[rest]
            if meant is not None and tensor.item() != meant:
                raise ValueError(f"{name} is {tensor.item()}, and transformers' Whisper has {meant}")
            continue
        block = re.fullmatch(r"layer_(\d+)/(.+)/(\w+)", rest)
        where, part, kind = block.groups() if block else ("", *rest.rsplit("/", 1))
        parts = _BLOCK.get(part) if block else (_OUTSIDE.get(part, part),)
        if parts is None or kind not in _KINDS:
            raise ValueError(f"unknown variable {name!r}; is the file quantised? Only whole weights are read")
        prefix = f"model.{side}.layers.{where}" if block else f"model.{side}"
        for ours, rows in zip(parts, _rows(name, tensor, len(parts)), strict=True):
            if ours.endswith("k_proj") and kind == "bias":
                if rows.any():
                    raise ValueError(f"{name} has a bias for keys, and transformers' Whisper has none")
                continue
            yield f"{prefix}.{ours}.{_KINDS[kind]}", rows.clone()
    tied = {"decoder/projection/weight": "decoder/embeddings/weight"}
    if binary.aliases != tied:
        raise ValueError(f"the unembedding should be the embedding; the file says {dict(binary.aliases)}")


def _rows(name: str, tensor: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
    if tensor.ndim == 0 or len(tensor) % parts:
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} does not split into {parts}")
    return tensor.tensor_split(parts)


def _config(binary: Binary, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Read sizes off the shapes."""
    from transformers import WhisperConfig

    sizes: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        found = [re.match(rf"model\.{side}\.layers\.(\d+)\.", name) for name in tensors]
        sizes[f"{side}_layers"] = 1 + max(int(match[1]) for match in found if match)
        sizes[f"{side}_attention_heads"] = int(binary.variables[f"{side}/num_heads"])
        sizes[f"{side}_ffn_dim"] = len(tensors[f"model.{side}.layers.0.fc1.weight"])
    embedding = tensors["model.decoder.embed_tokens.weight"]
    return WhisperConfig(
        vocab_size=embedding.shape[0],
        d_model=embedding.shape[1],
        num_mel_bins=tensors["model.encoder.conv1.weight"].shape[1],
        max_source_positions=len(tensors["model.encoder.embed_positions.weight"]),
        max_target_positions=len(tensors["model.decoder.embed_positions.weight"]),
        begin_suppress_tokens=None,  # this and the like stand in the settings of generation
        dtype=embedding.dtype,
        architectures=["WhisperForConditionalGeneration"],
        **sizes,
    )


def _check_complete(config: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError unless names and shapes are those of transformers' own module."""
    from transformers import WhisperForConditionalGeneration

    with torch.device("meta"):
        module = WhisperForConditionalGeneration(config)
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items() if name != "proj_out.weight"}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = sorted(name for name in expected | given if expected.get(name) != given.get(name))
    if wrong:
        name = wrong[0]
        raise ValueError(f"{len(wrong)} tensors differ; {name} is {given.get(name)}, not {expected.get(name)}")


def _tokenizer(path: Path, size: int) -> Any:
    from transformers import WhisperTokenizer

    try:
        tokenizer = WhisperTokenizer(tokenizer_file=str(path), pad_token="<|endoftext|>")
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    if len(tokenizer) + _TIMESTAMPS != size:
        raise ValueError(f"{path.name} has {len(tokenizer)} tokens and {_TIMESTAMPS} times; the embedding has {size}")
    return tokenizer


def _generation(config: Any, tokenizer: Any, told: Mapping[str, Any]) -> Any:
    """Build the settings of generation, which Whisper's own `generate` cannot do without."""
    from transformers import GenerationConfig

    ids = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    special = dict(zip(_SPECIAL, (end, end, end, start), strict=True))
    multilingual = config.vocab_size >= _MULTILINGUAL
    many: dict[str, Any] = {}
    if multilingual:
        spoken = set(told["lang_ids"])
        many["lang_to_id"] = {token: number for token, number in ids.items() if number in spoken}
        many["task_to_id"] = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
        if len(many["lang_to_id"]) != len(spoken):
            raise ValueError(f"{len(spoken) - len(many['lang_to_id'])} languages have no token")
    return GenerationConfig(
        **special,
        **many,
        is_multilingual=multilingual,
        max_length=config.max_target_positions,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        max_initial_timestamp_index=50,  # one second, as in openai-whisper
        return_timestamps=False,
        suppress_tokens=told["suppress_ids"],
        begin_suppress_tokens=told["suppress_ids_begin"],
        alignment_heads=told["alignment_heads"],
    )


def _extractor(config: Any) -> Any:
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=config.num_mel_bins, processor_class="WhisperProcessor")


def _save(folder: Path, tensors: dict[str, torch.Tensor], parts: tuple[Any, ...]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for part in parts:
        part.save_pretrained(folder)
    compact_json(folder / "tokenizer.json")
