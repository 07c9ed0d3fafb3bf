"""Arithmetic of a sweep of a 70B model, by the planner itself, on a model without weights. Nothing is run or measured.

python bench/seventy.py [--gpus 8] [--memory-gib 80] [--pairs 64] [--tokens 100] [--teraflops 400] [--gather-gb 300]
"""

import argparse
from dataclasses import replace

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import crosspatch as xp
from crosspatch.engine.plan import GIB, block_weights, bytes_per_prompt_token, bytes_per_token
from crosspatch.models.discover import discover
from crosspatch.tasks import Pair, Task

LLAMA_70B = {
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
SITES = "resid.pre@*"
DIFFER = 10  # position of the first differing token: what comes before it is exactly zero and not run


def weightless() -> xp.Model:
    """Return a model of Llama 3's largest shape whose weights take no memory; its parts are found, not proved."""
    config = AutoConfig.for_model("llama", **LLAMA_70B)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    return xp.Model(module, None, "70B", "", replace(discover(module), packed=True))


def questions(pairs: int, tokens: int) -> Task:
    """Return pairs that differ in one token."""
    clean = tuple(range(tokens))
    corrupt = tuple(token + (position == DIFFER) for position, token in enumerate(clean))
    pair = Pair(clean, corrupt, right=((5,),), wrong=((7,),), names={"end": tokens - 1})
    return Task("numbers", (pair,) * pairs, metric="logit_diff")


def lines(given: argparse.Namespace) -> list[str]:
    """Return the arithmetic, line by line."""
    model = weightless()
    weights = sum(p.numel() * p.element_size() for p in model.module.parameters())
    block = sum(p.numel() * p.element_size() for p in model.module.get_submodule("model.layers.0").parameters())
    ends = weights - block * model.anatomy.layers
    # FSDP holds its share of all, two blocks whole (one in use, one on its way), and embedding and unembedding whole.
    held = weights / given.gpus + 2 * block + ends
    free = int((given.memory_gib * GIB - held) * 0.8)
    plan = xp.plan_patch(
        model,
        questions(given.pairs, given.tokens),
        sites=SITES,
        options=xp.Options(memory=free, tokens=free // 2 // bytes_per_token(model)),
    )
    kept = bytes_per_prompt_token(model, (), given.tokens)
    rounds = -(-plan.packs // given.gpus)
    compute = plan.flops / given.gpus / (given.teraflops * 1e12)
    gathered = rounds * model.anatomy.layers / 2 * block / (given.gather_gb * 1e9)
    # Tensor parallelism sums each token's stream over the ranks twice a block, and each sum passes a ring twice.
    summed = 4 * (given.gpus - 1) / given.gpus * 2 * model.anatomy.d_model * plan.token_blocks
    naive = 2 * plan.naive_token_blocks * block_weights(model) / given.gpus / (given.teraflops * 1e12)
    return [
        f"weights in bfloat16: {weights / 1e9:.0f} GB; {weights / given.gpus / 1e9:.1f} GB on each of {given.gpus}",
        f"gathered while running: 2 blocks of {block / 1e9:.2f} GB, embedding and unembedding {ends / 1e9:.1f} GB",
        f"left for activations on a GPU of {given.memory_gib} GiB: {free / 1e9:.0f} GB of a budget of 80 %",
        f"kept of a pair: {kept / 1e6:.2f} MB a token, {kept * given.tokens / 1e9:.2f} GB for {given.tokens} tokens",
        f"working memory: {bytes_per_token(model) / 1e3:.0f} kB a token of a pack",
        f"plan of {SITES}, {given.pairs} pairs x {given.tokens} tokens: {plan.patches:,} patches, {plan.rows:,} run",
        f"chunks of pairs: {plan.chunks}; packs: {plan.packs:,}; rounds of {given.gpus}: {rounds:,}",
        f"token-blocks: {plan.token_blocks:.3g}; one forward a patch: {plan.naive_token_blocks:.3g}",
        f"arithmetic: {plan.flops:.3g} FLOP; {compute / 60:.0f} min at {given.teraflops} TFLOP/s a GPU",
        f"gathering blocks: {gathered / 60:.1f} min at {given.gather_gb} GB/s, behind the arithmetic",
        f"tensor parallel instead: {summed / (given.gather_gb * 1e9) / 60:.1f} min of sums, beside the arithmetic",
        f"one forward a patch at the same speed: {naive / 60:.0f} min",
    ]


def main() -> None:
    """Print the arithmetic."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--memory-gib", type=int, default=80)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--teraflops", type=float, default=400)
    parser.add_argument("--gather-gb", type=float, default=300)
    print("\n".join(lines(parser.parse_args())))


if __name__ == "__main__":
    main()
