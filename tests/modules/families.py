"""Small random models of the architectures beside decoder-only language models: real classes, and two runs each."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from crosspatch import Trial

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
WIDE = {"initializer_range": 0.2}
VOCAB = 60
logging.getLogger("transformers").setLevel(logging.ERROR)  # configurations of this size draw warnings


def tokens(rows: int = 2, length: int = 7, *, seed: int = 0) -> Tensor:
    return torch.randint(4, VOCAB - 4, (rows, length), generator=torch.Generator().manual_seed(seed))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Family:
    """What builds a model, the inputs of two runs, how its output is scored, and the stacks with their kinds."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    read: Callable[[Any], Tensor]
    stacks: Mapping[str, int]
    kinds: tuple[str, ...]


STREAM = ("resid.pre", "resid.post")
ATTENTION = ("attn.in", "attn.q", "attn.k", "attn.v", "attn.head", "attn.out")
CROSS = tuple(kind.replace("attn", "cross") for kind in ATTENTION)
MLP = ("mlp.in", "mlp.hidden", "mlp.out")
BLOCK = (*STREAM, *ATTENTION, *MLP)


def _last(output: Any) -> Tensor:
    return output.logits[:, -1]


def whisper() -> nn.Module:
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    sizes = {"vocab_size": VOCAB, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "num_mel_bins": 8}
    return hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(**sizes, **heads, **ids, max_source_positions=20, init_std=0.3)
    )


def t5() -> nn.Module:
    sizes = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return hf.T5ForConditionalGeneration(hf.T5Config(**sizes, decoder_start_token_id=0, initializer_factor=1.0))


def bart() -> nn.Module:
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    sizes = {"vocab_size": VOCAB, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2}
    return hf.BartForConditionalGeneration(hf.BartConfig(**sizes, **heads, init_std=0.3))


def vision() -> dict[str, Any]:
    return {"image_size": 16, "patch_size": 8, **SMALL, **WIDE}


def clip() -> nn.Module:
    text = {"vocab_size": VOCAB, "eos_token_id": VOCAB - 1, **SMALL, **WIDE}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision(), projection_dim=16))


def siglip() -> nn.Module:
    text = {"vocab_size": VOCAB, **SMALL, **WIDE}
    return hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=vision()))


def llava() -> nn.Module:
    text = hf.LlamaConfig(vocab_size=VOCAB, num_key_value_heads=2, **SMALL, **WIDE)
    config = hf.LlavaConfig(vision_config=hf.CLIPVisionConfig(**vision()), text_config=text, image_token_index=3)
    return hf.LlavaForConditionalGeneration(config)


def qwen2_vl() -> nn.Module:
    text = {"vocab_size": VOCAB, "num_key_value_heads": 2, **SMALL, **WIDE, "bos_token_id": 1, "eos_token_id": 2}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
    images = {"depth": 2, "embed_dim": 32, "num_heads": 4, "hidden_size": 32, "patch_size": 4, "mlp_ratio": 2}
    config = hf.Qwen2VLConfig(text_config=text, vision_config=images, image_token_id=3, **WIDE)
    return hf.Qwen2VLForConditionalGeneration(config)


def mamba() -> nn.Module:
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 4}
    return hf.MambaForCausalLM(hf.MambaConfig(**sizes, initializer_range=0.3))


def unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
        in_channels=3,
        out_channels=3,
    )


def sd3() -> nn.Module:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=12,
        caption_projection_dim=32,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=8,
    )


class Recurrent(nn.Module):
    """A policy that reads observations one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.memory = nn.Linear(5, 12), nn.GRU(12, 12, batch_first=True)
        self.act = nn.Linear(12, 4)

    def forward(self, seen: Tensor) -> Tensor:
        hidden, _ = self.memory(self.encode(seen).tanh())
        return self.act(hidden[:, -1])


def image_policy() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)
    )


def padded(seed: int) -> dict[str, Any]:
    """Token ids of which the second example has two less, as its mask says."""
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    return {"input_ids": tokens(seed=seed), "attention_mask": mask}


def words_of_images(seed: int) -> dict[str, Any]:
    """Four places for the image, then text."""
    ids = tokens(seed=seed)
    ids[:, 1:5] = 3
    return {"input_ids": ids, "pixel_values": noise(2, 3, 16, 16, seed=seed), "use_cache": False}


def patches(seed: int) -> dict[str, Any]:
    """Qwen's images come as patches of all images side by side: sixteen an image, joined by fours."""
    ids = tokens(seed=seed)
    ids[:, 1:5] = 3
    grid = torch.tensor([[1, 4, 4]] * 2)
    pixels = noise(32, 3 * 2 * 4 * 4, seed=seed)
    kinds = {"mm_token_type_ids": (ids == 3).long()}
    return {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": grid, "use_cache": False} | kinds


def to_denoise(size: int, channels: int, *, pooled: bool) -> Callable[[int], dict[str, Any]]:
    def inputs(seed: int) -> dict[str, Any]:
        found = {"encoder_hidden_states": noise(2, 5, 12, seed=seed), "timestep": torch.tensor([10, 500])}
        name = "hidden_states" if pooled else "sample"
        found[name] = noise(2, channels, size, size, seed=7)
        return found | ({"pooled_projections": noise(2, 10, seed=seed)} if pooled else {})

    return inputs


def _two(output: Any) -> Tensor:
    """Read how well texts fit their own images."""
    return (output.image_embeds * output.text_embeds).sum(-1, keepdim=True)


SPEECH = {"decoder_input_ids": tokens(length=5, seed=9), "use_cache": False}
FAMILIES: dict[str, Family] = {
    "whisper": Family(
        whisper, lambda s: {"input_features": noise(2, 8, 40, seed=s), **SPEECH}, _last,
        {"encoder": 2, "decoder": 2}, (*BLOCK, *CROSS),
    ),
    "t5": Family(t5, lambda s: padded(s) | SPEECH, _last, {"encoder": 2, "decoder": 2}, (*BLOCK, *CROSS)),
    "bart": Family(bart, lambda s: padded(s) | SPEECH, _last, {"encoder": 2, "decoder": 2}, (*BLOCK, *CROSS)),
    "bert": Family(
        lambda: hf.BertForMaskedLM(hf.BertConfig(vocab_size=VOCAB, **SMALL, **WIDE)), padded,
        lambda output: output.logits[:, 1], {"": 2}, BLOCK,
    ),
    "vit": Family(
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**vision())),
        lambda s: {"pixel_values": noise(2, 3, 16, 16, seed=s)}, lambda output: output.logits, {"": 2}, BLOCK,
    ),
    "clip": Family(
        clip, lambda s: padded(s) | {"pixel_values": noise(2, 3, 16, 16, seed=s)}, _two,
        {"vision": 2, "text": 2}, BLOCK,
    ),
    "siglip": Family(
        siglip, lambda s: {"input_ids": tokens(seed=s), "pixel_values": noise(2, 3, 16, 16, seed=s)}, _two,
        {"vision": 2, "text": 2}, BLOCK,
    ),
    "llava": Family(llava, words_of_images, _last, {"vision": 2, "language": 2}, BLOCK),
    "qwen2-vl": Family(qwen2_vl, patches, _last, {"visual": 2, "language": 2}, BLOCK),
    "mamba": Family(mamba, lambda s: {"input_ids": tokens(seed=s), "use_cache": False}, _last, {"": 3}, STREAM),
    "unet": Family(
        unet, to_denoise(8, 3, pooled=False), lambda output: output.sample.flatten(1),
        {"down": 1, "mid": 1, "up": 2}, (*BLOCK, *CROSS),
    ),
    "sd3": Family(
        sd3, to_denoise(8, 4, pooled=True), lambda output: output.sample.flatten(1),
        {"": 3}, (*BLOCK, "cross.q", "cross.k", "cross.v", "cross.head", "cross.out"),
    ),
    "mlp policy": Family(
        lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)),
        lambda s: noise(2, 6, seed=s), lambda output: output, {"": 3}, STREAM,
    ),
    "cnn policy": Family(image_policy, lambda s: noise(2, 3, 9, 9, seed=s), lambda output: output, {"": 3}, STREAM),
    "gru policy": Family(Recurrent, lambda s: noise(2, 6, 5, seed=s), lambda output: output, {"": 3}, STREAM),
}  # fmt: skip


@cache
def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return FAMILIES[name].build().eval()


def score(name: str, output: Any) -> Tensor:
    """Weigh what the output is read by, so that no two numbers of it cancel."""
    value = FAMILIES[name].read(output).float()
    return value @ torch.linspace(-1, 1.5, value.shape[-1])


def trial(name: str) -> Trial:
    family = FAMILIES[name]
    return Trial(built(name), family.inputs(1), family.inputs(2), lambda output: score(name, output), 2, name=name)
