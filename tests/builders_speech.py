"""Speech for tests: the shipped clip, the real Whispers, a small one, and a writer of CTranslate2's files."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from crosspatch.core.errors import MissingExtra

FOX = Path(__file__).parent / "audio" / "fox.flac"
WORDS = "The quick brown fox jumps over the lazy dog, please bring me a cup of tea."
NUMBERS = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def load_whisper(name):
    """Load a real Whisper from the cache that all tests share, or skip."""
    from crosspatch.models.load import load

    try:
        return load(name)
    except MissingExtra as missing:
        pytest.skip(str(missing))


def tiny_whisper(seed=0):
    """Make a random Whisper of 3 encoder and 2 decoder blocks, whose numbers are those of float16."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=51865,
        d_model=16,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        encoder_ffn_dim=24,
        decoder_ffn_dim=40,
        max_source_positions=1500,
        max_target_positions=32,
        num_mel_bins=80,
    )
    module = WhisperForConditionalGeneration(config).eval()
    for parameter in module.parameters():
        parameter.data = (parameter.data + 0.01 * torch.randn_like(parameter)).half().float()
    return module


def ct2_variables(module):
    """Name a Whisper's tensors as CTranslate2's converter does, from its own description of the layout."""
    state, found = {name: tensor.numpy() for name, tensor in module.state_dict().items()}, {}

    def norm(to, name):
        found[f"{to}/gamma"], found[f"{to}/beta"] = state[f"{name}.weight"], state[f"{name}.bias"]

    def linear(to, *names):
        found[f"{to}/weight"] = np.concatenate([state[f"{name}.weight"] for name in names])
        biases = [state.get(f"{name}.bias", np.zeros(len(state[f"{name}.weight"]), np.float32)) for name in names]
        found[f"{to}/bias"] = np.concatenate(biases)

    for side in ("encoder", "decoder"):
        layers = getattr(module.config, f"{side}_layers")
        for layer in range(layers):
            old, new = f"model.{side}.layers.{layer}", f"{side}/layer_{layer}"
            norm(f"{new}/self_attention/layer_norm", f"{old}.self_attn_layer_norm")
            linear(f"{new}/self_attention/linear_0", *(f"{old}.self_attn.{part}_proj" for part in "qkv"))
            linear(f"{new}/self_attention/linear_1", f"{old}.self_attn.out_proj")
            norm(f"{new}/ffn/layer_norm", f"{old}.final_layer_norm")
            linear(f"{new}/ffn/linear_0", f"{old}.fc1")
            linear(f"{new}/ffn/linear_1", f"{old}.fc2")
            if side == "decoder":
                norm(f"{new}/attention/layer_norm", f"{old}.encoder_attn_layer_norm")
                linear(f"{new}/attention/linear_0", f"{old}.encoder_attn.q_proj")
                linear(f"{new}/attention/linear_1", f"{old}.encoder_attn.k_proj", f"{old}.encoder_attn.v_proj")
                linear(f"{new}/attention/linear_2", f"{old}.encoder_attn.out_proj")
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        found[f"{side}/position_encodings/encodings"] = state[f"model.{side}.embed_positions.weight"]
        found[f"{side}/num_heads"] = np.int16(getattr(module.config, f"{side}_attention_heads"))
    for conv in ("conv1", "conv2"):
        linear(f"encoder/{conv}", f"model.encoder.{conv}")
    found["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    floats = {name: value.astype(np.float16) for name, value in found.items() if value.dtype == np.float32}
    switches = {"activation": np.int8(3), "pre_norm": np.int8(1), "alibi": np.int8(0), "alignment_layer": np.int16(-1)}
    return found | floats | {f"decoder/{name}": value for name, value in switches.items()}


def ct2_bytes(variables, *, spec="WhisperSpec", version=6, aliases=None):
    """Write CTranslate2's binary format."""

    def text(value):
        raw = value.encode() + b"\0"
        return struct.pack("<H", len(raw)) + raw

    out = [struct.pack("<I", version), text(spec), struct.pack("<II", 3, len(variables))]
    for name, value in variables.items():
        array = np.asarray(value)
        kind, raw = NUMBERS[array.dtype.name], array.tobytes()
        out += [text(name), struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)]
        out += [struct.pack("<BI", kind, len(raw)), raw]
    aliases = {"decoder/projection/weight": "decoder/embeddings/weight"} if aliases is None else aliases
    out.append(struct.pack("<I", len(aliases)))
    out += [text(word) for pair in aliases.items() for word in pair]
    return b"".join(out)


def write_pieces(folder, data, *, tokenizer):
    """Write the three files that are converted; languages and suppressed tokens are some that exist."""
    folder.mkdir(exist_ok=True)
    (folder / "model.bin").write_bytes(data)
    (folder / "tokenizer.json").write_bytes(tokenizer)
    told = {"lang_ids": [50259, 50261], "suppress_ids": [1, 2, 50258], "suppress_ids_begin": [220, 50257]}
    (folder / "config.json").write_text(json.dumps({**told, "alignment_heads": [[1, 0]]}))
    return folder
