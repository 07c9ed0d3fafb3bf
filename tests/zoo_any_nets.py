"""Models from outside transformers: two denoisers of diffusers, plain networks and policies."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from zoo_any_parts import D_HEAD, HIDDEN, N_HEADS, Case, D, Spot, Stack, attention, loud, mlp, numbers, real, whole

N_ACTIONS = 3


@cache
def unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "block_out_channels": (16, D)}
    ups = {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "layers_per_block": 1, "norm_num_groups": 4}
    # what this class calls `attention_head_dim` is the number of heads
    sizes = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "cross_attention_dim": 24, "attention_head_dim": 4}
    return loud(UNet2DConditionModel(**sizes, **blocks, **ups))


@cache
def sd3() -> nn.Module:
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "pos_embed_max_size": 8}
    widths = {"joint_attention_dim": 24, "caption_projection_dim": D, "pooled_projection_dim": 16}
    heads = {"num_layers": 3, "attention_head_dim": D_HEAD, "num_attention_heads": N_HEADS}
    return loud(SD3Transformer2DModel(**sizes, **widths, **heads))


class Residual(nn.Module):
    """A block that adds to its input what two maps make of it."""

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(x)))


class Tower(nn.Module):
    """A stem, residual blocks and a head over the mean of all places."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module]):
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.ModuleList(blocks), nn.Linear(D, N_ACTIONS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.flatten(2).mean(-1) if x.ndim > 2 else x)


class Recurrent(nn.Module):
    """A policy with a memory: it reads a row of observations and acts at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, D), nn.Tanh())
        self.memory = nn.GRU(D, D, batch_first=True)
        self.actor, self.critic = nn.Linear(D, N_ACTIONS), nn.Linear(D, 1)

    def forward(self, observations: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        told, memory = self.memory(self.encoder(observations), memory)
        return self.actor(told[:, -1]), self.critic(told[:, -1]), memory


@cache
def plain_mlp() -> nn.Module:
    torch.manual_seed(0)
    return loud(Tower(nn.Linear(6, D), [Residual(nn.Linear(D, HIDDEN), nn.Linear(HIDDEN, D)) for _ in range(3)]))


@cache
def plain_cnn() -> nn.Module:
    torch.manual_seed(0)

    def conv(inner: int, outer: int) -> nn.Module:
        return nn.Conv2d(inner, outer, 3, padding=1)

    return loud(Tower(conv(3, D), [Residual(conv(D, HIDDEN), conv(HIDDEN, D)) for _ in range(2)]), gain=2)


@cache
def gru() -> nn.Module:
    torch.manual_seed(0)
    return loud(Recurrent(), gain=3)


@cache
def actor_critic() -> nn.Module:
    from gymnasium.spaces import Box
    from stable_baselines3.common.policies import ActorCriticPolicy

    torch.manual_seed(0)
    box = {"low": -1.0, "high": 1.0}
    return loud(ActorCriticPolicy(Box(**box, shape=(6,)), Box(**box, shape=(2,)), lambda _: 1e-3))


def of_unet(width: int) -> dict[str, Spot]:
    """Name the places of a transformer block of a UNet: two attentions and a gated MLP."""
    names = ("to_q", "to_k", "to_v", "to_out.0")
    parts = {
        kind: Spot(spot.path, spot.side, spot.width, None, spot.n_heads, spot.d_head)  # its attention gives a tensor
        for module, name in (("attn", "attn1"), ("cross", "attn2"))
        for kind, spot in attention(module, (name, *names), width=width, d_head=width // 4).items()
    }
    return whole(width) | parts | mlp("ff.net.0", "ff.net.2", width=width, hidden=4 * width, module="ff")


def ends(before: int, after: int, *, last: int | None = None) -> dict[str, Spot]:
    """Name both ends of a block that changes the width."""
    return {"resid.pre": Spot("", "input", before), "resid.post": Spot("", "output", after, last)}


NAMES = ("attn", "to_q", "to_k", "to_v", "to_out.0")
SD3_IMAGE = (
    whole(first="hidden_states", last=1) | attention("attn", NAMES) | mlp("", "ff.net.2", hidden=4 * D, module="ff")
)
SD3_TEXT = (
    whole(first="encoder_hidden_states", last=0)
    | attention("attn", ("attn", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"))
    | {"attn.out": Spot("attn", "output", D, 1)}
    | mlp("", "ff_context.net.2", hidden=4 * D, module="ff_context")
)
PLAIN = whole() | {"mlp.hidden": Spot("second", "input", HIDDEN), "mlp.out": Spot("second", "output", D)}


def denoised(seed: int) -> dict[str, Any]:
    """Make noisy images and a text `[2, 6, 24]` with padding on the right."""
    text = {"encoder_hidden_states": numbers(seed + 1, 2, 6, 24), "encoder_attention_mask": real(6, 2)}
    return {"sample": numbers(seed, 2, 3, 8, 8), "timestep": torch.tensor([300, 700])} | text


def joined(seed: int) -> dict[str, Any]:
    """Make noisy latents, a text and its summary."""
    text = {"encoder_hidden_states": numbers(seed + 1, 2, 6, 24), "pooled_projections": numbers(seed + 2, 2, 16)}
    return {"hidden_states": numbers(seed, 2, 4, 8, 8), "timestep": torch.tensor([300, 700])} | text


def projected(output: Any) -> Tensor:
    """Weigh what a denoiser gives with fixed numbers."""
    flat = output.sample.flatten(1)
    return flat @ numbers(9, flat.shape[1]) / flat.shape[1] ** 0.5


def chosen(output: Any) -> Tensor:
    """Compare two actions, and add the value where a policy gives one."""
    actions, value = (output[0], output[1][:, 0]) if isinstance(output, tuple) else (output, 0)
    return actions[:, 0] - actions[:, 1] + value


def pair(name: str, *shape: int) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Make a base and a source input."""
    return {name: numbers(1, 2, *shape)}, {name: numbers(2, 2, *shape)}


def within(path: str) -> str:
    return f"{path}.attentions.0.transformer_blocks"


def plain(name: str, build: Callable[[], nn.Module], given: Any, stacks: Mapping[str, Stack]) -> Case:
    return Case(name, build, *given, chosen, stacks)


NETS = (
    Case(
        "unet",
        unet,
        denoised(1),
        denoised(3),
        projected,
        {
            "down 0": Stack("down_blocks", (0,), ends(16, 16, last=0), axis=1),
            "down 1": Stack("down_blocks", (1,), ends(16, D, last=0), axis=1),
            "up 0": Stack("up_blocks", (0,), ends(D, D), axis=1),
            "up 1": Stack("up_blocks", (1,), ends(D, 16), axis=1),
            "down attention": Stack(within("down_blocks.0"), (0,), of_unet(16)),
            "middle attention": Stack(within("mid_block"), (0,), of_unet(D)),
            "up attention": Stack(within("up_blocks.1"), (0,), of_unet(16)),
        },
        {"encoder_hidden_states": "encoder_attention_mask"},
    ),
    Case(
        "sd3",
        sd3,
        joined(1),
        joined(4),
        projected,
        {
            "image": Stack("transformer_blocks", (0, 1, 2), SD3_IMAGE, feeds=("hidden_states",)),
            # the last block gives no text: its text has keys and values only
            "text": Stack("transformer_blocks", (0, 1), SD3_TEXT, feeds=("encoder_hidden_states",)),
        },
    ),
    plain("mlp", plain_mlp, pair("x", 6), {"body": Stack("blocks", (0, 1, 2), PLAIN, feeds=("x",))}),
    plain("cnn", plain_cnn, pair("x", 3, 8, 8), {"body": Stack("blocks", (0, 1), PLAIN, axis=1, feeds=("x",))}),
    plain("gru", gru, pair("observations", 5, 6), {}),
    plain(
        "actor critic",
        actor_critic,
        tuple(given | {"deterministic": True} for given in pair("obs", 6)),
        {
            "policy": Stack("mlp_extractor.policy_net", (2,), whole(64)),
            "value": Stack("mlp_extractor.value_net", (2,), whole(64)),
        },
    ),
)
