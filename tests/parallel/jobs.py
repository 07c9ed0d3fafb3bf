"""What each rank does: python jobs.py JOB FOLDER, with torchrun's environment."""

import os
import sys
from pathlib import Path

import numpy as np
import questions
import torch
import torch.distributed as dist

from crosspatch import Layout, open_model

RANK = int(os.environ["RANK"])


def tensor_parallel(folder):
    found = {}
    for family in questions.FAMILIES:
        model = open_model(folder / family, layout=Layout(tp=2))
        found |= {f"{family} {name}": value for name, value in questions.answers(model).items()}
        found[f"{family} fingerprint"] = np.array(model.fingerprint)
    return found


def fsdp(folder):
    found = {}
    for family in questions.FAMILIES:
        model = open_model(folder / family, layout=Layout(fsdp=2))
        found |= {f"{family} {name}": value for name, value in questions.answers(model).items()}
        found[f"{family} fingerprint"] = np.array(model.fingerprint)
    return found


if __name__ == "__main__":
    job, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    np.savez(folder / f"{job}-{RANK}.npz", **globals()[job](folder))
    dist.barrier()
    dist.destroy_process_group()
