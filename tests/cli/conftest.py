"""A tiny model with a tokenizer on disk, and the command line run in this process, for all tests of verbs."""

import json
import shutil
from functools import cache

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from builders_gemma import NAME, open_gemma
from builders_tasks import word_tokenizer
from crosspatch.cli.app import app
from crosspatch.models import open_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Save a random Llama of three layers with a tokenizer that knows the words of the tasks; give its folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in an empty folder, where run folders go."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@cache
def opened(what, **given):
    """Open each model once for all tests in this process: opening proves its parts anew every time."""
    return open_gemma() if what == NAME and not any(given.values()) else open_model(what, **given)


@pytest.fixture
def call(here, monkeypatch):
    """Give a function that runs the command line on words, and returns its result."""

    def open_once(what, *, say=None, **given):
        return opened(str(what), **given)

    monkeypatch.setattr("crosspatch.models.open.open_model", open_once)

    def run(*words, **given):
        return CliRunner().invoke(app, [str(word) for word in words], prog_name="crosspatch", **given)

    return run


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """Give a function that lets the first test make a folder, and every later one have a copy; it gives what was told.

    Only for folders that tests start from, made by the same words.
    """
    kept, told = tmp_path_factory.mktemp("kept"), {}

    def have(folder, make):
        if folder.name in told:
            shutil.copytree(kept / folder.name, folder)
        else:
            said = make()
            shutil.copytree(folder, kept / folder.name)
            told[folder.name] = said
        return told[folder.name]

    return have


@pytest.fixture
def document(call):
    """Give a function that runs a verb with --json and returns the one document on standard output."""

    def run(*words, code=0):
        result = call(*words, "--json")
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    return run
