"""Real models of many kinds, small, with the places in their stacks as a person reads them off the code."""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import logging as transformers_logging

from zoo_any_parts import (
    D_HEAD,
    HIDDEN,
    IMAGE,
    LLAMA,
    N_HEADS,
    SPREAD,
    VOCAB,
    Case,
    D,
    Spot,
    Stack,
    answer,
    attention,
    bart,
    loud,
    mlp,
    numbers,
    real,
    tokens,
    whole,
)

transformers_logging.set_verbosity_error()  # tiny configurations are odd on purpose

SPEECH = {
    "vocab_size": VOCAB,
    "d_model": D,
    **{f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("attention_heads", 4))},
    "encoder_ffn_dim": HIDDEN,
    "decoder_ffn_dim": HIDDEN,
    "init_std": SPREAD,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
BLOCKS = {"hidden_size": D, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": HIDDEN}
TEXT = {**BLOCKS, "vocab_size": VOCAB, "max_position_embeddings": 32, "initializer_range": SPREAD}
VISION = {**BLOCKS, "image_size": 16, "patch_size": 8, "initializer_range": SPREAD}
GROUPED = {**TEXT, "num_key_value_heads": 2}
# transformers draws the weights of these towers by a factor of its own
CLIP_TEXT = {**TEXT, "initializer_factor": 4.0, "eos_token_id": 59, "bos_token_id": 1, "pad_token_id": 0}
CLIP_VISION = {**VISION, "initializer_factor": 4.0}


@cache
def whisper() -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 16}
    return loud(WhisperForConditionalGeneration(WhisperConfig(**SPEECH, **sizes)))


@cache
def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "d_model": D, "d_kv": 6, "d_ff": HIDDEN, "num_layers": 2, "num_heads": 4}
    given = {"feed_forward_proj": "gated-gelu", "pad_token_id": 0, "decoder_start_token_id": 0}
    return loud(T5ForConditionalGeneration(T5Config(**sizes, **given)))


@cache
def bart_model() -> nn.Module:
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    return loud(BartForConditionalGeneration(BartConfig(**SPEECH, max_position_embeddings=32)))


@cache
def bert(name: str) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    return loud(getattr(transformers, name)(transformers.BertConfig(**TEXT)))


@cache
def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    return loud(ViTForImageClassification(ViTConfig(**VISION, num_labels=9)))


@cache
def clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    return loud(CLIPModel(CLIPConfig(text_config=CLIP_TEXT, vision_config=CLIP_VISION, projection_dim=16)))


@cache
def siglip() -> nn.Module:
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(0)
    return loud(SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)))


@cache
def llava() -> nn.Module:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    vision = {**CLIP_VISION, "model_type": "clip_vision_model", "num_hidden_layers": 3}
    text = {**GROUPED, "model_type": "llama"}
    return loud(
        LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE))
    )


@cache
def qwen2_vl() -> nn.Module:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    torch.manual_seed(0)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    vision = {"depth": 2, "embed_dim": D, "hidden_size": D, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4}
    special = {"image_token_id": IMAGE, "video_token_id": 57, "vision_start_token_id": 56, "vision_end_token_id": 55}
    config = Qwen2VLConfig(
        text_config={**GROUPED, "rope_parameters": rope},
        vision_config=vision | {"spatial_merge_size": 2, "temporal_patch_size": 2, "initializer_range": SPREAD},
        **special,
    )
    return loud(Qwen2VLForConditionalGeneration(config))


@cache
def mllama() -> nn.Module:
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    torch.manual_seed(0)
    tiles = {"max_num_tiles": 2, "supported_aspect_ratios": [[1, 1], [1, 2]], "intermediate_layers_indices": [1]}
    vision = {**VISION, **tiles, "attention_heads": 4, "num_global_layers": 1, "vision_output_dim": 2 * D}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = {**GROUPED, **special, "num_hidden_layers": 3, "cross_attention_layers": [1]}
    return loud(
        MllamaForConditionalGeneration(MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE))
    )


@cache
def mamba() -> nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": D, "state_size": 4, "num_hidden_layers": 2, "pad_token_id": 0}
    return loud(MambaForCausalLM(MambaConfig(**sizes, initializer_range=SPREAD, use_cache=False)))


T5_SELF = attention("attn", ("layer.0.SelfAttention", "q", "k", "v", "o"), d_head=6)
T5_CROSS = attention("cross", ("layer.1.EncDecAttention", "q", "k", "v", "o"), d_head=6)


def t5_mlp(at: int) -> dict[str, Spot]:
    name = f"layer.{at}.DenseReluDense"
    return mlp(f"{name}.wi_0", f"{name}.wo", module=name)


BERT = whole() | {
    # The module `attention.self` gives the heads; what attention adds to the stream leaves `attention.output.dense`.
    "attn.q": Spot("attention.self.query", "output", D, None, N_HEADS, D_HEAD),
    "attn.k": Spot("attention.self.key", "output", D, None, N_HEADS, D_HEAD),
    "attn.v": Spot("attention.self.value", "output", D, None, N_HEADS, D_HEAD),
    "attn.head": Spot("attention.output.dense", "input", D, None, N_HEADS, D_HEAD),
    "attn.out": Spot("attention.output.dense", "output", D),
    **mlp("intermediate", "output.dense"),
}
QWEN_VISION = whole() | {
    "attn.q": Spot("attn.qkv", "output", 3 * D, None, N_HEADS, D_HEAD, 0),
    "attn.k": Spot("attn.qkv", "output", 3 * D, None, N_HEADS, D_HEAD, D),
    "attn.v": Spot("attn.qkv", "output", 3 * D, None, N_HEADS, D_HEAD, 2 * D),
    "attn.head": Spot("attn.proj", "input", D, None, N_HEADS, D_HEAD),
    "attn.out": Spot("attn", "output", D),
    **mlp("mlp.fc1", "mlp.fc2", hidden=2 * D, module="mlp"),
}
GATED_MLP = mlp("mlp.gate_proj", "mlp.down_proj", module="mlp")
CROSS_ONLY = (
    whole() | attention("cross", ("cross_attn", "q_proj", "k_proj", "v_proj", "o_proj"), heads=(4, 2)) | GATED_MLP
)
TILED = (
    whole() | attention("attn", ("self_attn", *(f"{x}_proj" for x in "qkvo"))) | mlp("mlp.fc1", "mlp.fc2", module="mlp")
)
MIXER = whole() | {
    "mixer.in": Spot("mixer", "input", D),
    "mixer.hidden": Spot("mixer.out_proj", "input", 2 * D),
    "mixer.out": Spot("mixer", "output", D),
}


def spoken(seed: int) -> dict[str, Any]:
    """Make audio and a text; whisper's encoder takes no mask."""
    text = tokens(seed, 7, {(0, 0): 1, (1, 0): 1})
    return {"input_features": numbers(seed, 2, 8, 24), "decoder_input_ids": text, "decoder_attention_mask": real(7, 2)}


def translated(seed: int, start: int) -> dict[str, Any]:
    """Make two texts, both with padding on the right."""
    text = tokens(seed + 1, 6, {(0, 0): start, (1, 0): start})
    masks = {"attention_mask": real(8, 3), "decoder_attention_mask": real(6, 2)}
    return {"input_ids": tokens(seed, 8), "decoder_input_ids": text, **masks}


def captioned(seed: int, *, left: bool) -> dict[str, Any]:
    """Make images and captions; CLIP reads its text at the token 59, SigLIP at the last position."""
    given = {} if left else {(0, 6): 59, (1, 4): 59}
    return {
        "input_ids": tokens(seed, 7, given),
        "pixel_values": numbers(seed, 2, 3, 16, 16),
        "attention_mask": real(7, 2, left=left),
    }


def asked(seed: int) -> dict[str, Any]:
    """Make an image of four patches and a question behind it, with padding on the left."""
    given = {(0, at): IMAGE for at in range(4)} | {(1, at): IMAGE for at in range(2, 6)}
    images = {"pixel_values": numbers(seed, 2, 3, 16, 16)}
    return {"input_ids": tokens(seed, 10, given), "attention_mask": real(10, 2, left=True)} | images


def patched_images(seed: int) -> dict[str, Any]:
    """Make images of 4 × 4 patches that are merged to four tokens, with padding on the right."""
    given = {(example, at): IMAGE for example in range(2) for at in range(1, 5)}
    text = tokens(seed, 10, given)
    kinds = {"mm_token_type_ids": (text == IMAGE).long(), "image_grid_thw": torch.tensor([[1, 4, 4]] * 2)}
    return {"input_ids": text, "attention_mask": real(10, 2), "pixel_values": numbers(seed, 32, 96), **kinds}


def tiled(seed: int) -> dict[str, Any]:
    """Make images of two tiles; a text that sees them from its second token on."""
    seen = torch.ones(2, 8, 1, 2, dtype=torch.long)
    seen[:, 0] = 0
    text = {"input_ids": tokens(seed, 8, {(0, 1): IMAGE, (1, 1): IMAGE}), "attention_mask": real(8, 2)}
    whole_image = {"aspect_ratio_ids": torch.tensor([[2], [2]]), "aspect_ratio_mask": torch.ones(2, 1, 2).long()}
    return text | {"pixel_values": numbers(seed, 2, 1, 2, 3, 16, 16), "cross_attention_mask": seen} | whole_image


BOTH_TEXTS = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}
PADDED = {"input_ids": "attention_mask"}
TWO = (0, 1)
CLIP_STACKS = {
    "vision": Stack("vision_model.encoder.layers", TWO, bart("mlp."), feeds=("pixel_values",)),
    "text": Stack("text_model.encoder.layers", TWO, bart("mlp."), feeds=("input_ids",)),
}
BERT_CASE = Case(
    "bert",
    lambda: bert("BertForMaskedLM"),
    *({"input_ids": tokens(seed, 8), "attention_mask": real(8, 3)} for seed in (1, 2)),
    answer(7, 4),
    {"text": Stack("bert.encoder.layer", TWO, BERT, feeds=("input_ids",))},
    PADDED,
)

TRANSFORMERS = (
    Case(
        "whisper",
        whisper,
        spoken(1),
        spoken(2),
        answer(6, 4),
        {
            "encoder": Stack("model.encoder.layers", TWO, bart(""), feeds=("input_features",)),
            "decoder": Stack("model.decoder.layers", TWO, bart("", cross=True), feeds=("decoder_input_ids",)),
        },
        {"decoder_input_ids": "decoder_attention_mask"},
    ),
    Case(
        "t5",
        t5,
        translated(1, 0),
        translated(3, 0),
        answer(5, 3),
        {
            "encoder": Stack("encoder.block", TWO, whole(last=0) | T5_SELF | t5_mlp(1), feeds=("input_ids",)),
            "decoder": Stack(
                "decoder.block", TWO, whole(last=0) | T5_SELF | T5_CROSS | t5_mlp(2), feeds=("decoder_input_ids",)
            ),
        },
        BOTH_TEXTS,
    ),
    Case(
        "bart",
        bart_model,
        translated(1, 1),
        translated(3, 1),
        answer(5, 3),
        {
            "encoder": Stack("model.encoder.layers", TWO, bart(""), feeds=("input_ids",)),
            "decoder": Stack("model.decoder.layers", TWO, bart("", cross=True), feeds=("decoder_input_ids",)),
        },
        BOTH_TEXTS,
    ),
    BERT_CASE,
    replace(
        BERT_CASE,
        name="bert without a head",
        build=lambda: bert("BertModel"),
        metric=lambda output: output.pooler_output[:, 5] - output.pooler_output[:, 7],
        stacks={"text": Stack("encoder.layer", TWO, BERT, feeds=("input_ids",))},
    ),
    Case(
        "vit",
        vit,
        {"pixel_values": numbers(1, 2, 3, 16, 16)},
        {"pixel_values": numbers(2, 2, 3, 16, 16)},
        lambda output: output.logits[:, 5] - output.logits[:, 7],
        {
            "vision": Stack(
                "vit.layers",
                TWO,
                whole()
                | attention("attn", ("attention", *(f"{x}_proj" for x in "qkvo")))
                | mlp("mlp.fc1", "mlp.fc2", module="mlp"),
                feeds=("pixel_values",),
            )
        },
    ),
    Case(
        "clip",
        clip,
        captioned(1, left=False),
        captioned(2, left=False),
        lambda output: output.logits_per_image.diagonal(),
        CLIP_STACKS,
        PADDED,
    ),
    Case(
        "siglip",
        siglip,
        captioned(1, left=True),
        captioned(2, left=True),
        lambda output: output.logits_per_text.diagonal(),
        CLIP_STACKS,
        PADDED,
    ),
    Case(
        "llava",
        llava,
        asked(1),
        asked(2),
        answer(9, 9),
        {
            "vision": Stack(
                "model.vision_tower.encoder.layers", (0, 1, 2), bart("mlp."), feeds=("pixel_values",), unread=(2,)
            ),
            "text": Stack("model.language_model.layers", TWO, LLAMA, feeds=("pixel_values", "input_ids")),
        },
        PADDED,
    ),
    Case(
        "qwen2_vl",
        qwen2_vl,
        patched_images(1),
        patched_images(2),
        answer(9, 7),
        {
            "vision": Stack("model.visual.blocks", TWO, QWEN_VISION, feeds=("pixel_values",)),
            "text": Stack("model.language_model.layers", TWO, LLAMA, feeds=("pixel_values", "input_ids")),
        },
        PADDED,
    ),
    Case(
        "mllama",
        mllama,
        tiled(1),
        tiled(2),
        answer(7, 5),
        {
            "vision": Stack("model.vision_model.transformer.layers", TWO, TILED, feeds=("pixel_values",)),
            "global vision": Stack("model.vision_model.global_transformer.layers", (0,), TILED),
            "text": Stack("model.language_model.layers", (0, 2), LLAMA, feeds=("input_ids",)),
            "cross": Stack("model.language_model.layers", (1,), CROSS_ONLY),
        },
        PADDED,
    ),
    Case(
        "mamba",
        mamba,
        *({"input_ids": tokens(seed, 7), "attention_mask": real(7, 2, left=True)} for seed in (1, 2)),
        answer(6, 6),
        {"text": Stack("backbone.layers", TWO, MIXER, feeds=("input_ids",))},
        PADDED,
    ),
)
