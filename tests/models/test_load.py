"""Models load from every place a user may name, as they are, or say what to do."""

import gc
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from crosspatch.core.errors import BadInput, CorruptFile, CrosspatchError, MissingExtra, UnknownName
from crosspatch.models import checkpoint
from crosspatch.models.checkpoint import Place, explain, quiet
from crosspatch.models.fingerprint import fingerprint
from crosspatch.models.load import load, parse_device, parse_dtype

IDS = torch.tensor([[1, 5, 9, 2]])


def tiny_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({f"w{index}": index for index in range(40)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0")


def tiny_llama(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = LlamaConfig(**{**sizes, "num_attention_heads": 2, "num_key_value_heads": 1, **changes})
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()  # so that a checkpoint in bfloat16 holds the same weights
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    with quiet():
        tiny_llama().to(torch.bfloat16).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def message(error, what, **options):
    with pytest.raises(error) as raised:
        load(what, **options)
    return str(raised.value)


def test_a_folder_loads_with_its_tokenizer_and_equals_the_saved_model(saved):
    loaded = load(saved)
    assert loaded.name == "tiny-llama"
    assert loaded.tokenizer("w3 w7").input_ids == [3, 7]
    assert not loaded.module.training
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.float32}
    expected = tiny_llama()(IDS).logits
    torch.testing.assert_close(loaded.module(IDS).logits, expected, rtol=0, atol=0)
    assert load(str(saved)).fingerprint == loaded.fingerprint == fingerprint(loaded.module)


@pytest.mark.parametrize(
    ("dtype", "found"),
    [("auto", torch.bfloat16), ("float64", torch.float64), (torch.float16, torch.float16), (None, torch.float32)],
)
def test_the_dtype_is_the_one_asked_for(saved, dtype, found):
    assert next(load(saved, dtype=dtype).module.parameters()).dtype == found


def test_the_default_dtype_depends_on_the_device():
    assert parse_dtype(None, torch.device("cpu")) == torch.float32
    assert parse_dtype(None, torch.device("cuda")) == "auto"
    assert parse_dtype("bfloat16", torch.device("cuda")) == torch.bfloat16
    for wrong in ("float31", "int8", torch.int64, "nn"):
        with pytest.raises(UnknownName, match=r"unknown dtype .*float32"):
            parse_dtype(wrong, torch.device("cpu"))


def test_devices_are_checked_at_once():
    assert parse_device(None) == torch.device("cpu")
    assert parse_device("auto").type in {"cpu", "cuda", "mps"}
    with pytest.raises(BadInput, match=r"device 'gpu' cannot be used.*'auto'"):
        parse_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="device 'cuda' cannot be used here"):
            parse_device("cuda")


def test_a_folder_needs_no_network_and_runs_no_code(saved, monkeypatch):
    monkeypatch.setattr(checkpoint, "is_offline", lambda: 1 / 0)
    assert load(saved, tokenizer=str(saved)).name == "tiny-llama"
    assert Place("x", is_local=True).arguments() == {"trust_remote_code": False, "local_files_only": True}


def test_a_tokenizer_may_be_given(saved, copy):
    for path in copy.glob("tokenizer*"):
        path.unlink()
    said = []
    assert load(copy, say=said.append).tokenizer is None
    assert said == [f"{copy} has no tokenizer: tasks must come as token ids"]
    own = tiny_tokenizer()
    assert load(copy, tokenizer=own).tokenizer is own
    assert load(copy, tokenizer=str(saved)).tokenizer("w3").input_ids == [3]
    assert "tokenizer=" in message(BadInput, saved, tokenizer=str(copy))


def test_a_damaged_tokenizer_is_refused(copy):
    (copy / "tokenizer.json").write_text("{")
    assert all(word in message(BadInput, copy) for word in ["tokenizer of", str(copy), "tokenizer=…"])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.Dropout())


def test_a_module_is_used_as_it_is():
    module = tiny_llama().to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    own = tiny_tokenizer()
    loaded = load(module, tokenizer=own)
    assert loaded.module is module
    assert loaded.tokenizer is own
    assert loaded.name == "LlamaForCausalLM"
    assert load(module).tokenizer is None
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert next(module.parameters()).dtype == torch.bfloat16
    assert load(Net().eval()).name == "Net"


def test_a_module_loaded_from_a_folder_is_named_after_the_folder(saved):
    assert load(load(saved).module).name == "tiny-llama"


def test_a_module_in_training_mode_is_refused():
    assert all(word in message(BadInput, Net()) for word in ["Net", "training mode", ".eval()", "dropout"])
    module = Net().eval()
    module.inner[1].train()
    assert "'inner.1'" in message(BadInput, module)
    assert module.inner[1].training


def test_a_module_is_not_converted():
    said = message(BadInput, Net().eval(), dtype="float32", device="cpu")
    assert "leave out dtype, device" in said


def test_a_folder_without_a_config_says_what_it_holds(tmp_path):
    assert all(word in message(BadInput, tmp_path) for word in [str(tmp_path), "config.json", "nothing"])
    (tmp_path / "model.gguf").write_text("")
    assert str(tmp_path / "model.gguf") in message(BadInput, tmp_path)


def test_pickle_weights_are_refused_with_the_way_out(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    said = message(BadInput, copy)
    assert all(word in said for word in ["pickle", "use_safetensors=False", "save_pretrained", "pytorch_model.bin"])
    (copy / "adapter.safetensors").write_bytes(b"")
    assert "only pickle weights" in message(BadInput, copy)
    (copy / "adapter.safetensors").unlink()
    (copy / "pytorch_model.bin").unlink()
    assert "no weights" in message(BadInput, copy)


def test_damaged_weights_are_refused(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert all(word in message(CorruptFile, copy) for word in [str(copy), "damaged", "Copy or download"])


def test_parameters_that_would_be_random_are_refused(copy):
    change_config(copy, num_hidden_layers=3)
    said = message(BadInput, copy)
    assert all(word in said for word in ["lacks 9 parameters", "random", "model.layers.2"])


def test_tensors_that_are_left_over_are_logged(copy, caplog):
    change_config(copy, num_hidden_layers=1)
    with caplog.at_level(logging.WARNING, logger="crosspatch"):
        load(copy)
    assert "9 tensors of the checkpoint are not used" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "frobnicate"}, ["architecture", "frobnicate", "open_model(module"]),
        ({"model_type": "clip_vision_model"}, ["no causal language model", "open_model(module"]),
        (
            {"model_type": "zzz", "auto_map": {"AutoConfig": "x.Y", "AutoModelForCausalLM": "x.Z"}},
            ["its own code", "never run"],
        ),
        ({"hidden_size": 32}, ["cannot be loaded by transformers", "open_model(module"]),
    ],
)
def test_configs_that_cannot_be_loaded_say_why(copy, changes, words):
    change_config(copy, **changes)
    said = message(BadInput, copy)
    assert all(word in said for word in [str(copy), *words])


def test_a_config_that_is_no_json_is_refused(copy):
    (copy / "config.json").write_text("{")
    assert "not a valid JSON" in message(BadInput, copy)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("gemma3-270m", ["'gemma3-270m'", "Did you mean 'gemma-3-270m'?", "no file or folder"]),
        ("Gemma-3-270M", ["Did you mean", "gemma-3-270m"]),
        ("./nothing/here", ["unknown model", "gemma-3-270m", "nothing/here"]),
        ("nothing.gguf", ["unknown model", "no file or folder"]),
        ("a/b/c", ["unknown model", "hub id"]),
        ("", ["unknown model", "hub id"]),
    ],
)
def test_names_that_are_nowhere_say_what_was_tried(what, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    said = message(UnknownName, what)
    assert all(word in said for word in words)


def test_files_of_other_kinds_are_refused(saved):
    said = message(BadInput, saved / "model.safetensors")
    assert all(word in said for word in [".safetensors", "a folder", ".gguf"])
    assert "no suffix" in message(BadInput, Path(sys.executable).with_name("python"))


def test_a_revision_is_for_the_hub_alone(saved):
    assert "no revisions" in message(BadInput, saved, revision="main")
    assert "no revisions" in message(BadInput, "gemma-3-270m", revision="main")


def test_without_network_an_unknown_hub_id_says_so_at_once(monkeypatch):
    monkeypatch.setattr(checkpoint, "is_offline", lambda: True)
    with pytest.raises(UnknownName) as raised:
        load("someone/no-such-model")
    assert all(word in str(raised.value) for word in ["no-such-model", "hub cannot be reached", "gemma-3-270m"])
    assert isinstance(raised.value.__cause__, OSError)


def test_no_network_is_seen_by_looking_up_the_hub(monkeypatch):
    def fail(*_):
        raise OSError("no such host")

    monkeypatch.setattr(checkpoint, "getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(checkpoint.socket, "getaddrinfo", fail)
    assert checkpoint.is_offline()
    monkeypatch.setattr(checkpoint, "getproxies", lambda: {"https": "proxy"})
    assert not checkpoint.is_offline()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert checkpoint.is_offline()


HUB_CASE = """
from crosspatch.models.load import load
loaded = load("someone/tiny", revision="main")
print(loaded.name, loaded.tokenizer("w3").input_ids, loaded.fingerprint)
"""


def test_a_hub_id_in_the_hub_s_own_cache_opens_without_network(saved, tmp_path):
    store = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(saved, store / "snapshots" / "abc123")
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text("abc123")
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", HUB_CASE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == f"someone/tiny [3] {load(saved).fingerprint}", done.stderr


class GatedRepoError(OSError):
    pass


class RevisionNotFoundError(OSError):
    pass


class RepositoryNotFoundError(OSError):
    pass


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (GatedRepoError("403"), BadInput, ["'org/name' on the hub", "accept its terms", "hf auth login"]),
        (OSError("You are trying to access a gated repo."), BadInput, ["accept its terms"]),
        (RevisionNotFoundError("404"), UnknownName, ["no revision 'v9'"]),
        (RepositoryNotFoundError("404"), UnknownName, ["does not exist", "private"]),
        (OSError("x does not appear to have a file named model.safetensors"), BadInput, ["only pickle", "'org/name'"]),
        (ImportError("needs frob"), MissingExtra, ["needs frob"]),
        (RuntimeError(""), BadInput, ["RuntimeError(", "open_model(module"]),
    ],
)
def test_errors_of_the_hub_are_explained(error, kind, words):
    explained = explain(error, Place("org/name", is_local=False, revision="v9"))
    assert type(explained) is kind
    assert all(word in str(explained) for word in words)


def test_an_error_is_recognised_by_its_cause():
    outer = OSError("something")
    outer.__cause__ = RepositoryNotFoundError("404")
    outer.__cause__.__context__ = outer  # a circle must end
    assert "does not exist" in str(explain(outer, Place("org/name", is_local=False)))
    assert isinstance(explain(outer, Place("org/name", is_local=False)), CrosspatchError)


def test_loading_is_quiet_and_restores_what_it_silenced(copy, capfd):
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as library

    hub = logging.getLogger("huggingface_hub")
    change_config(copy, num_hidden_layers=1)  # transformers would report the tensors left over

    def now():
        return library.get_verbosity(), library.is_progress_bar_enabled(), are_progress_bars_disabled(), hub.level

    for level, switches in (
        (library.INFO, [library.enable_progress_bar]),
        (library.ERROR, [library.disable_progress_bar]),
        (library.DEBUG, [library.disable_progress_bar, enable_progress_bars]),
        (library.WARNING, [library.enable_progress_bar]),
    ):
        library.set_verbosity(level)
        hub.setLevel(level)
        for switch in switches:
            switch()
        before = now()
        capfd.readouterr()
        load(copy)
        assert capfd.readouterr() == ("", "")
        assert now() == before
        assert gc.isenabled()
    with quiet():
        warnings.warn("not shown", UserWarning, stacklevel=1)
    with pytest.raises(ZeroDivisionError), quiet():
        1 / 0  # noqa: B018
    assert library.get_verbosity() == library.WARNING
    assert library.is_progress_bar_enabled()


def test_a_fingerprint_sees_config_names_shapes_dtypes_and_values():
    module = tiny_llama()
    same = fingerprint(module)
    assert len(same) == 16
    assert fingerprint(tiny_llama()) == same
    module.config._name_or_path = "elsewhere"
    assert fingerprint(module) == same
    seen = {same, fingerprint(tiny_llama().double()), fingerprint(tiny_llama(rope_theta=5.0))}
    changed = tiny_llama()
    with torch.no_grad():
        changed.model.layers[1].mlp.up_proj.weight[3, 5] += 1
    seen |= {fingerprint(changed), fingerprint(Net()), fingerprint(nn.Sequential(*Net().inner))}
    assert len(seen) == 6
    zeros = [nn.Module(), nn.Module()]
    zeros[0].register_buffer("zero", torch.zeros(3))
    zeros[1].register_buffer("zero", torch.zeros(3, dtype=torch.int32))
    assert fingerprint(zeros[0]) != fingerprint(zeros[1])


def test_a_fingerprint_takes_any_tensors():
    module = nn.Module()
    module.register_buffer("none", torch.zeros(0, 3))
    module.register_buffer("scalar", torch.tensor(True))
    module.register_buffer("long", torch.arange(10_000))
    module.register_buffer("turned", torch.arange(12.0).reshape(3, 4).T)
    module.register_buffer("complex", torch.ones(2, dtype=torch.complex64))
    module.register_buffer("absent", torch.empty(2, 2, device="meta"))
    first = fingerprint(module)
    module.scalar.logical_not_()
    assert fingerprint(module) != first
