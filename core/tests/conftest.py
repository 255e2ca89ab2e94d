"""Fixtures of several test files: plugins installed for one test, and toy models made from configurations."""

from __future__ import annotations

import io
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    InstallPlugin = Callable[..., str]
    ToyModel = Callable[..., Path]

TOY_CONFIGS = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2},
    "qwen2": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "eos_token_id": 2,
    },
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 32,
    },
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
}


@pytest.fixture
def install_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InstallPlugin]:
    """``install_plugin("module source", name="toy")`` installs a distribution of that name for one test.

    Beside the core it is the only one in use, whatever else is installed.
    """
    from graftwork.registry import reset_registry

    site = tmp_path / "site"
    modules: list[str] = []

    def install(source: str, *, name: str = "toy") -> str:
        module = f"{name}_plugin"
        info = site / f"graftwork_{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(textwrap.dedent(source))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: graftwork-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[graftwork.plugins]\n{name} = {module}\n")
        (info / "RECORD").write_text("")
        modules.append(module)
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.setenv("GRAFTWORK_PLUGINS", ",".join(one.removesuffix("_plugin") for one in modules))
        reset_registry()
        return f"graftwork-{name}"

    yield install
    for module in modules:
        sys.modules.pop(module, None)
    reset_registry()


@pytest.fixture
def toy_model(tmp_path: Path) -> ToyModel:
    """``toy_model("gpt2", dtype=..., **config)`` saves a small model with plain transformers and gives its folder."""

    def make(kind: str, *, dtype: str = "float32", folder: str | None = None, **changes: object) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        values = {"vocab_size": 64, **TOY_CONFIGS[kind], **changes}
        config = AutoConfig.for_model(kind, **values)
        path = tmp_path / (folder or kind)
        AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).save_pretrained(path)
        return path

    return make


@pytest.fixture
def graft(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Runs ``graft`` in this process; gives its exit code, output and errors."""
    from graftwork.cli import main

    def run(*args: object, piped: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(piped))
        code = main([str(arg) for arg in args])
        out, err = capfd.readouterr()
        return code, out, err

    return run
