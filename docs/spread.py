"""Patch a model that several processes hold: torchrun --nproc-per-node N docs/spread.py MODEL --fsdp N (or --tp N)."""

import argparse

import torch.distributed as dist

import crosspatch as xp


def main() -> None:
    """Every process does the same; the first one keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--sites", default="resid.pre")
    parser.add_argument("--out", default="effects")
    given = parser.parse_args()
    model = xp.open_model(given.model, layout=xp.Layout(tp=given.tp, fsdp=given.fsdp))
    task = xp.tasks.ioi(model, n=given.pairs, seed=0)
    effects = xp.patch(model, task, sites=given.sites)
    if dist.get_rank() == 0:
        effects.save(given.out)
        print(effects)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
