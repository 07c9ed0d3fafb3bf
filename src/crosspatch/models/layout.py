"""Layout: how a model is laid out over devices and processes, and in what precision."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from crosspatch.core.errors import BadInput, MissingExtra
from crosspatch.models.discover import blocks_path
from crosspatch.models.shards import STYLES, plan_of, style_at

_TORCHRUN = "Start the script under torchrun: torchrun --nproc-per-node {size} script.py"
_PACKAGES = {8: ("torchao", "bitsandbytes"), 4: ("bitsandbytes", "torchao")}


@dataclass(frozen=True)
class Layout:
    """How a model that does not fit is laid out. One of `device_map`, `tp` and `fsdp` spreads it.

    `device_map` ("auto", or a device for each part), `max_memory` (bytes a device) and `offload` (a folder) are
    accelerate's: one process, layers on several GPUs, in memory or on disk. `tp` splits each matrix over that many
    processes, `fsdp` stores a part of each weight on each of that many. `bits` quantises weights as they are loaded:
    8 (torchao, else bitsandbytes) or 4 (bitsandbytes, else torchao). `attention` is the kernel of the model's own
    forward ("sdpa", "eager").
    """

    device_map: str | Mapping[str, Any] | None = None
    max_memory: Mapping[Any, Any] | None = None
    offload: str | os.PathLike[str] | None = None
    tp: int = 1
    fsdp: int = 1
    bits: int | None = None
    attention: str | None = None

    def __post_init__(self) -> None:
        for name in ("tp", "fsdp"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise BadInput(f"{name}={size!r}: give the number of processes, 1 or more.")
        if self.bits not in (None, 8, 4):
            raise BadInput(f"bits={self.bits!r}: give 8, 4, or None for the weights as they are.")
        ways = [f"{name}={getattr(self, name)!r}" for name in ("tp", "fsdp") if getattr(self, name) > 1]
        ways += ["device_map"] if self.device_map is not None else []
        if len(ways) > 1:
            raise BadInput(f"{' and '.join(ways)} spread a model in ways that exclude each other: choose one.")
        if self.device_map is None and (self.max_memory is not None or self.offload is not None):
            raise BadInput("max_memory and offload belong to a device map: give device_map='auto' too.")
        if self.bits is not None and self.processes > 1:
            raise BadInput(
                f"bits={self.bits} with {ways[0]}: quantised weights are not split over processes here. Leave one out; "
                "device_map='auto' goes with bits."
            )

    def to_json(self) -> dict[str, Any]:
        """Write what another process alone can lay out likewise as plain data: all but the split over processes."""
        place, memory = self.device_map, self.max_memory
        return {
            "device_map": {k: _plain(v) for k, v in place.items()} if isinstance(place, Mapping) else place,
            "max_memory": None if memory is None else [[_plain(k), _plain(v)] for k, v in memory.items()],
            "offload": None if self.offload is None else str(Path(self.offload).resolve()),
            "bits": self.bits,
            "attention": self.attention,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Layout":
        """Read what `to_json` wrote. Raises KeyError, TypeError or BadInput for anything else."""
        memory = entry["max_memory"]
        return cls(**{**entry, "max_memory": None if memory is None else {key: size for key, size in memory}})

    @property
    def processes(self) -> int:
        """Number of processes that hold the model together."""
        return max(self.tp, self.fsdp)

    @property
    def places(self) -> bool:
        """Whether it says where weights go, so that they are not moved after loading."""
        return self.device_map is not None or self.processes > 1

    def on(self, device: torch.device | str) -> "Layout":
        """Return the layout on one device.

        Raises:
            BadInput: it says itself where the model goes.
        """
        if self.places:
            raise BadInput(f"device={str(device)!r} and a layout that places the model itself: leave device out.")
        return replace(self, device_map={"": str(device)})

    def device(self) -> torch.device:
        """Return the device that the choice of precision goes by."""
        if self.device_map == "cpu" or (isinstance(self.device_map, Mapping) and "cuda" not in str(_first(self))):
            return torch.device("cpu")
        return torch.device("cuda" if torch.cuda.is_available() and (self.places or self.bits) else "cpu")

    def arguments(self, config: Any, dtype: torch.dtype | str) -> dict[str, Any]:
        """Return what `from_pretrained` takes to lay a model of this configuration out so.

        Raises:
            BadInput: the model cannot be split so, or the processes are not there.
            MissingExtra: quantising needs a package that is not installed.
        """
        found: dict[str, Any] = {}
        if self.device_map is not None:
            place = dict(self.device_map) if isinstance(self.device_map, Mapping) else self.device_map
            found["device_map"] = place
        if self.max_memory is not None:
            found["max_memory"] = dict(self.max_memory)
        if self.offload is not None:
            found["offload_folder"] = str(Path(self.offload))
        if self.attention is not None:
            found["attn_implementation"] = self.attention
        if self.bits is not None:
            found["quantization_config"] = quantisation(self.bits, dtype)
            if self.device_map is None and torch.cuda.is_available():
                found["device_map"] = {"": "cuda"}  # where a model of few bits is wanted
        if self.processes > 1:
            found["distributed_config"] = _distributed(self, config)
        return found


def _plain(value: Any) -> int | str:
    return value if isinstance(value, int) else str(value)


def _first(layout: Layout) -> Any:
    return next(iter(layout.device_map.values()), "cpu") if isinstance(layout.device_map, Mapping) else ""


def quantisation(bits: int, dtype: torch.dtype | str) -> Any:
    """Return transformers' configuration for weights of 8 or 4 bits, with whichever package is installed.

    Raises:
        MissingExtra: neither torchao nor bitsandbytes is installed.
    """
    from transformers import BitsAndBytesConfig, TorchAoConfig

    package = next((name for name in _PACKAGES[bits] if find_spec(name)), None)
    if package is None:
        raise MissingExtra(f"weights of {bits} bits need torchao or bitsandbytes: pip install {_PACKAGES[bits][0]}")
    if package == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig

        four: Any = torch
        return TorchAoConfig(Int8WeightOnlyConfig() if bits == 8 else IntxWeightOnlyConfig(four.int4))
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=compute)


def _distributed(layout: Layout, config: Any) -> Any:
    """Return transformers' configuration for several processes, after a look at whether the model can be split so."""
    try:
        from transformers.distributed.configuration_utils import DistributedConfig
    except ImportError as error:
        raise MissingExtra("tp and fsdp need transformers 5.19 or newer: pip install -U transformers") from error
    from transformers import AutoModelForCausalLM

    require_processes(layout.processes)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    if layout.tp > 1:
        _require_even(module, layout.tp)
        return DistributedConfig(tp_size=layout.tp)
    # Blocks are called by themselves here, so each must be gathered by itself, whatever its name in a family.
    return DistributedConfig(fsdp_size=layout.fsdp, fsdp_plan={f"{blocks_path(module)}.*": "free_full_weight"})


def require_processes(size: int) -> None:
    """Join the process group that torchrun has prepared, unless the caller has made one.

    Raises:
        BadInput: there is none, or it is of another size.
    """
    if not dist.is_initialized():
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ):
            raise BadInput(f"{size} processes are asked for, and this is one alone. {_TORCHRUN.format(size=size)}")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if dist.get_world_size() != size:
        raise BadInput(
            f"{size} processes are asked for, and {dist.get_world_size()} are running. {_TORCHRUN.format(size=size)}"
        )


def _require_even(module: torch.nn.Module, size: int) -> None:
    """Raise unless heads and the widths that are split divide by the number of processes."""
    plan, config = plan_of(module), module.config.get_text_config()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    counts = {name: getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads")}
    split = {name: part for name, part in module.named_modules() if STYLES.get(style_at(plan, name))}
    for name, part in split.items():
        for width in ("in_features", "out_features"):
            side = "input" if width == "in_features" else "output"
            if side in STYLES[style_at(plan, name)]:
                counts[f"{name}.{width}"] = getattr(part, width, None)
    uneven = [f"{name} is {count}" for name, count in counts.items() if isinstance(count, int) and count % size]
    if uneven:
        raise BadInput(
            f"tp={size} does not divide what it splits: {uneven[0]}. Take a number of processes that does, or fsdp=…, "
            "which any number goes with."
        )
