"""What each rank does: python jobs.py JOB FOLDER, with torchrun's environment."""

import os
import sys
from pathlib import Path

import lockstep
import numpy as np
import questions
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

import crosspatch as xp
import zoo
from crosspatch.core.errors import CrosspatchError
from crosspatch.core.progress import SilentProgress
from crosspatch.engine.doctor import examine
from crosspatch.models.blocks import block_list

RANK = int(os.environ["RANK"])


def tensor_parallel(folder):
    """Answer all questions on each family, split by `Layout(tp=2)`."""
    return _answered(folder, xp.Layout(tp=2)) | _of_own_split(folder) | _refused(folder) | _resumed(folder)


def fsdp(folder):
    """Answer all questions on each family, stored by `Layout(fsdp=2)`; run packs of our own in step."""
    found = _answered(folder, xp.Layout(fsdp=2))
    for family in ("llama", "bloom"):
        model = xp.open_model(folder / family, layout=xp.Layout(fsdp=2))
        found[f"{family} in step"] = lockstep.streams_in_step(model, RANK, 2)
    return found | _sharded_by_hand(folder)


def _answered(folder, layout):
    found = {}
    for family in questions.FAMILIES:
        model = xp.open_model(folder / family, layout=layout)
        found |= {f"{family} {name}": value for name, value in questions.answers(model).items()}
        found[f"{family} fingerprint"] = np.array(model.fingerprint)
        half = xp.open_model(folder / family, layout=layout, dtype="bfloat16")
        found[f"{family} half"] = xp.patch(half, questions.task(), sites="resid.pre@*, attn.head[*, *]@end").raw
        found[f"{family} warnings"] = np.array(xp.patch(model, questions.task(), sites="resid.pre@end").warnings)
    found["unsound"] = np.array([check.name for check in examine(model) if not check.ok])
    return found


def _of_own_split(folder):
    """Give a module that transformers split for us, and patch heads by the number that a rank has for them."""
    from transformers import AutoModelForCausalLM, DistributedConfig

    split = DistributedConfig(tp_size=2)
    module = AutoModelForCausalLM.from_pretrained(folder / "llama", distributed_config=split).eval()
    model = xp.open_model(module)
    found = {"own": xp.patch(model, questions.task(), sites="attn.head[*, *]@end").raw}
    with torch.no_grad():
        handle = module.model.layers[1].self_attn.o_proj.register_forward_pre_hook(_wipe_local_head_1)
        found["naive"] = module(questions.prompt()).logits.numpy()
        handle.remove()
        with xp.write(model, {"attn.head[1, 1]": xp.Zero()}):
            found["head 1"] = module(questions.prompt()).logits.numpy()
        with xp.write(model, {"attn.head[1, 1|3]": xp.Zero()}):
            found["heads 1 and 3"] = module(questions.prompt()).logits.numpy()
    return found


def _wipe_local_head_1(_, args):
    value = args[0].clone()
    value[..., zoo.WIDTH : 2 * zoo.WIDTH] = 0
    return (value,)


class _Stopping(SilentProgress):
    """Presses Ctrl-C after the first pack."""

    def advance(self, done):
        raise KeyboardInterrupt


def _resumed(folder):
    """Interrupt a run with a journal on both ranks, and go on."""
    model, asked = xp.open_model(folder / "llama", layout=xp.Layout(tp=2)), {"sites": "resid.pre@*"}
    kept = {"tokens": 20, "journal": folder / "journal"}
    part = xp.patch(model, questions.task(), **asked, options=xp.Options(**kept, progress=_Stopping()))
    whole = xp.patch(model, questions.task(), **asked, options=xp.Options(**kept))
    return {"interrupted": part.raw, "resumed": whole.raw}


def _refused(folder):
    asked = {
        "no plan": lambda: xp.open_model(folder / "gpt2", layout=xp.Layout(tp=2)),
        "uneven": lambda: xp.open_model(folder / "one_key", layout=xp.Layout(tp=2)),
        "processes": lambda: xp.open_model(folder / "llama", layout=xp.Layout(tp=3)),
        "layout": lambda: xp.open_model(_split_by_torch()),
        "pipeline": lambda: xp.open_model(_stage(folder)),
        "memory": lambda: _out_of_memory(xp.open_model(folder / "llama", layout=xp.Layout(tp=2))),
    }
    return {f"refused {name}": np.array(_message(ask)) for name, ask in asked.items()}


def _split_by_torch():
    """Split one matrix by torch's own tensor parallelism, which no plan of the model knows."""
    module = zoo.fresh("llama")
    mesh = init_device_mesh("cpu", (2,))
    return parallelize_module(module, mesh, {"model.layers.0.mlp.down_proj": RowwiseParallel()})


def _stage(folder):
    from transformers import AutoModelForCausalLM, DistributedConfig

    return AutoModelForCausalLM.from_pretrained(
        folder / "llama", distributed_config=DistributedConfig(pp_size=2)
    ).eval()


def _out_of_memory(model):
    """Run out of memory in one block, on all ranks alike."""
    handle = block_list(model.module, model.anatomy)[1].register_forward_pre_hook(_no_memory)
    try:
        xp.patch(model, questions.task(), sites="resid.pre@end")
    finally:
        handle.remove()


def _no_memory(*_):
    raise torch.OutOfMemoryError("no memory")


def _message(ask):
    try:
        ask()
    except CrosspatchError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def rounds(folder):
    """Sweep in rounds of packs, with a journal that both reach, and again from what it holds; TP in step with it."""
    found = {}
    for name, layout in (("fsdp", xp.Layout(fsdp=2)), ("tp", xp.Layout(tp=2))):
        model = xp.open_model(folder / "llama", layout=layout)
        for turn in ("first", "again"):
            options = xp.Options(tokens=40, memory=80_000, threads=1, journal=folder / name)
            effects = xp.patch(model, questions.task(), sites=questions.SITES, options=options)
            found |= {f"{name} {turn}": effects.raw, f"{name} {turn} base": effects.base}
            found[f"{name} {turn} packs"] = np.array(effects.provenance["settings"]["packs"])
    return found


def _sharded_by_hand(folder):
    """Give modules that are sharded with torch's own function; afterwards they still train."""
    del folder
    found = {}
    for family in ("gpt2", "bloom"):
        module = zoo.fresh(family)
        for block in module.get_submodule(zoo.ZOO[family].blocks):
            fully_shard(block)
        fully_shard(module)
        model = xp.open_model(module)
        found[f"{family} own"] = xp.patch(model, questions.task(), sites="resid.pre@*, attn.head[*, *]@end").raw
        blocks = block_list(module, model.anatomy)
        whole = [p for block in blocks for p in block.parameters() if not isinstance(p, DTensor)]
        assert isinstance(blocks[0], FSDPModule)
        assert not whole
        module(questions.prompt()).logits.square().mean().backward()
        grads = {name: p.grad.full_tensor().numpy() for name, p in module.named_parameters()}
        found |= {f"{family} grad {name}": value for name, value in grads.items()}
    return found


if __name__ == "__main__":
    job, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    np.savez(folder / f"{job}-{RANK}.npz", **globals()[job](folder))
    dist.barrier()
    dist.destroy_process_group()
