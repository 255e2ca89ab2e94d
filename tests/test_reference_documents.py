"""What users of torchtune, fairseq2 and Oumi know from their documents runs here: every snippet, as it stands there.

The documents lie beside the test data and not in this repository. Only names of packages and paths are changed
(``ADAPTED``), and small models on this machine stand in for those that the names mean.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import graftwork
from graftwork import load_tokenizer, presets
from graftwork.builders.torchtune_names import fresh_model
from graftwork.checkpoints import convert

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = Path(os.environ.get("GRAFTWORK_TEST_DATA", "/nowhere"))
DOCUMENTS = DATA.parent / "reference"
pytestmark = [
    pytest.mark.skipif(
        not (DOCUMENTS / "torchtune-models.rst").is_file(),
        reason="the reference documents do not lie beside GRAFTWORK_TEST_DATA",
    ),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]

ADAPTED = {
    "torchtune.models.llama": "graftwork_llama.llama",
    "torchtune.models.phi3": "graftwork_phi3.phi3",
    "torchtune.models.mistral": "graftwork_mistral.mistral",
    "torchtune.models.gemma": "graftwork_gemma.gemma",
    "torchtune.utils": "graftwork.checkpoints",
    "tune download": "graft download",
    "<ACCESS_TOKEN>": "a-token",
    "<HF_TOKEN>": "a-token",
    "fairseq2.models.llama": "graftwork_llama",
    "fairseq2.data.tokenizers": "graftwork",
    "oumi.core.configs": "graftwork",
    "oumi.core.models": "graftwork",
    "oumi.builders": "graftwork",
    "from builders": "from graftwork",
    "from core.configs": "from graftwork",
}
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


def snippets(document: str, language: str, folder: Path) -> list[str]:
    """The blocks of a language in a document, with package names adapted and paths led into ``folder``."""
    text = (DOCUMENTS / document).read_text(encoding="utf-8")
    if document.endswith(".md"):
        found = re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)
    else:
        pattern = rf"^( *)\.\. code-block:: {language}\n\n((?:\1 +[^\n]*\n|\n)+)"
        found = [textwrap.dedent(block) for _, block in re.findall(pattern, text + "\n", re.M)]
    for old, new in {**ADAPTED, "/tmp/": f"{folder}/", "/path/to/": f"{folder}/"}.items():
        found = [block.replace(old, new) for block in found]
    return found


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    """Runs a snippet among the names that those before it left; its first line says which one failed."""
    exec(compile(code, code.strip().partition("\n")[0], "exec"), names)
    return names


def small(preset: str, **changes: Any) -> Any:
    """The architecture of a preset at toy size, with weights of its own."""
    torch.manual_seed(len(preset))
    return fresh_model(presets()[preset].config(**SMALL, **{**HEADS, **changes})).eval()


def in_two_shards(model: Any, folder: Path, name: str, save: Any) -> None:
    """Writes a model as two files with an index, as they are published."""
    model.config.save_pretrained(folder)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    keys = sorted(state)
    index = {}
    for number, part in enumerate((keys[: len(keys) // 2], keys[len(keys) // 2 :]), 1):
        file = name.format(number)
        save({key: state[key] for key in part}, folder / file)
        index |= dict.fromkeys(part, file)
    suffix = "bin" if name.endswith("bin") else "safetensors"
    (folder / f"{name.partition('-')[0]}.{suffix}.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )


def same_logits(model: Any, other: Any) -> None:
    ids = torch.arange(3, 15).view(1, 12)
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, other.eval()(ids).logits)


# torchtune: five families, each from the files that it is published as

SAFETENSORS, BIN = "model-0000{}-of-00002.safetensors", "pytorch_model-0000{}-of-00002.bin"
FAMILIES = {
    # the module that the document imports from, the builder in it, the folder, its files, the tokenizer's file
    "llama3": ("graftwork_llama.llama3", "llama3_8b", "Meta-Llama-3-8B-Instruct", None, "llama3/tokenizer.model"),
    "llama2": ("graftwork_llama.llama2", "llama2_7b", "Llama2-7b-hf", BIN, "llama2/tokenizer.model"),
    "phi3": ("graftwork_phi3.phi3", "phi3_mini", "Phi-3-mini-4k-instruct", SAFETENSORS, "llama2/tokenizer.model"),
    "mistral": ("graftwork_mistral.mistral", "mistral_7b", "Mistral-7B-v0.1", BIN, "mistral/tokenizer.model.v1"),
    "gemma": ("graftwork_gemma.gemma", "gemma_2b", "gemma", SAFETENSORS, "small/torchtune_m.model"),
}


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The five models as files under ``tmp_path``, and builders that give their toy sizes."""
    from safetensors.torch import save_file

    models = {}
    for name, (module, builder, folder, files, tokenizer) in FAMILIES.items():
        model = small(builder, **({"num_key_value_heads": 1} if name == "gemma" else {}))
        place = tmp_path / folder
        place.mkdir()
        if files is None:
            model.save_pretrained(tmp_path / "hf")
            convert(tmp_path / "hf", place / "original", to="meta")
            place = place / "original"
        else:
            save = torch.save if files is BIN else lambda state, path: save_file(state, path, {"format": "pt"})
            in_two_shards(model, place, files, save)
        shutil.copyfile(DATA / "tokenizers" / tokenizer, place / "tokenizer.model")
        monkeypatch.setattr(f"{module}.{builder}", lambda config=model.config: fresh_model(config))
        models[name] = model
    return models


def test_torchtunes_python(published: dict[str, Any], tmp_path: Path) -> None:
    blocks = snippets("torchtune-models.rst", "python", tmp_path)
    assert len(blocks) == len(FAMILIES)
    for name, code in zip(FAMILIES, blocks, strict=True):
        names = run(code, {})
        same_logits(names["model"], published[name])
        assert names["state_dict"]["model"].keys() == names["model"].state_dict().keys()
        text = "The future of AI is"
        assert names["tokenizer"].decode(names["tokenizer"].encode(text, add_bos=False, add_eos=False)).strip() == text


def test_torchtunes_yaml(published: dict[str, Any], tmp_path: Path) -> None:
    (block,) = snippets("torchtune-models.rst", "yaml", tmp_path)
    made = {section: graftwork.instantiate(values) for section, values in yaml.safe_load(block).items()}
    assert made.keys() == {"tokenizer", "checkpointer", "model"}
    made["model"].load_state_dict(made["checkpointer"].load_checkpoint())
    same_logits(made["model"], published["llama3"])
    assert made["tokenizer"].encode("Hi", add_bos=True, add_eos=False)[0] == 128000


def test_torchtunes_yaml_with_the_names_it_has_there(published: dict[str, Any], tmp_path: Path) -> None:
    (block,) = snippets("torchtune-models.rst", "yaml", tmp_path)
    for old, new in ADAPTED.items():
        block = block.replace(new, old)
    assert "_component_: torchtune.models.llama3.llama3_8b" in block
    made = {section: graftwork.instantiate(values) for section, values in yaml.safe_load(block).items()}
    made["model"].load_state_dict(made["checkpointer"].load_checkpoint())


class Hub(BaseHTTPRequestHandler):
    """The routes of a Hub on which every model is the same two files."""

    FILES: ClassVar[dict[str, bytes]] = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"weights"}
    asked: ClassVar[list[tuple[str, str]]] = []

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        self.asked.append((self.path, self.headers.get("authorization", "")))
        name = self.path.rpartition("/")[2]
        if "/tree/" in self.path:
            content = json.dumps(
                [{"type": "file", "path": file, "size": len(data), "oid": "0"} for file, data in self.FILES.items()]
            ).encode()
        elif self.path.startswith("/api/models/"):
            siblings = [{"rfilename": file} for file in self.FILES]
            content = json.dumps({"id": "a/b", "sha": "0" * 40, "siblings": siblings, "private": False}).encode()
        else:
            content = self.FILES.get(name, b"")
        self.send_response(200 if content else 404)
        self.send_header("content-length", str(len(content)))
        self.send_header("etag", f'"{name}"')
        self.send_header("x-repo-commit", "0" * 40)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    Hub.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield Hub
    server.shutdown()
    server.server_close()


def test_torchtunes_shell(hub: type[Hub], tmp_path: Path) -> None:
    commands = snippets("torchtune-models.rst", "bash", tmp_path)
    assert len(commands) == len(FAMILIES)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands:
        done = subprocess.run(
            command, shell=True, env=environment, check=False, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        repository, folder = re.findall(r"download (\S+).*--output-dir (\S+)", command)[0]
        assert {file.name for file in Path(folder).iterdir() if file.is_file()} == set(hub.FILES)
        assert any(repository in path and token == "Bearer a-token" for path, token in hub.asked)


# fairseq2


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of cards in which Llama 3.2 1B is a toy with the real tokenizer."""
    model, folder = small("llama3_2_1b"), tmp_path / "Llama-3.1-8B"
    model.save_pretrained(folder)
    tokenizer = load_tokenizer(DATA / "tokenizers" / "llama3" / "tokenizer.model").hf
    tokenizer.chat_template = graftwork.build_chat_template("llama3-instruct")
    tokenizer.save_pretrained(folder)
    shutil.copyfile(DATA / "tokenizers" / "llama3" / "tokenizer.model", tmp_path / "tokenizer.model")
    place = tmp_path / "cards"
    place.mkdir()
    card = {"model_family": "llama", "model_arch": "llama3_2_1b", "checkpoint": str(folder), "tokenizer": str(folder)}
    small_sizes = {"model_config_override": {**SMALL, **HEADS}}
    instruct = {"name": "llama3_2_1b_instruct", "tokenizer_config_override": {"use_eot": True}}
    documents = [{"name": "llama3_2_1b", **card, **small_sizes}, {**card, **small_sizes, **instruct}]
    (place / "toys.yaml").write_text(yaml.safe_dump_all(documents))
    monkeypatch.setenv("GRAFTWORK_CARD_PATH", str(place))
    return place


def test_fairseq2s_python(cards: Path, tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    blocks = snippets("fairseq2-llama.rst", "python", tmp_path)
    assert len(blocks) == 6
    for code in blocks[:1]:
        run(code, names)
    same_logits(names["model"], AutoModelForCausalLM.from_pretrained(tmp_path / "Llama-3.1-8B"))
    assert names["encoded"].tolist() == [128000, 791, 3938, 315, 15592, 374, 128001]
    for code in blocks[1:3]:
        run(code, names)
    assert names["encoder"]("Hi").tolist()[-1] == 128009, "use_eot: the end of a turn closes a text"
    for code in blocks[3:]:
        run(code, names)
    assert names["formatted_text"].startswith("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n")
    assert names["tokens"].dtype == torch.int64 and names["tokens"].dim() == 1


def test_fairseq2s_cards(cards: Path, tmp_path: Path) -> None:
    blocks = snippets("fairseq2-llama.rst", "yaml", tmp_path)
    text, ids = "Hello, world!", [9906, 11, 1917, 0]
    impls = {"hf": ids, "tiktoken": ids, "sentencepiece": [15043, 29892, 3186, 29991]}
    assert len(blocks) == len(impls)
    for (impl, wanted), block in zip(impls.items(), blocks, strict=True):
        if impl == "sentencepiece":
            shutil.copyfile(DATA / "tokenizers" / "llama2" / "tokenizer.model", tmp_path / "tokenizer.model")
        (cards / f"{impl}.yaml").write_text(block)
        tokenizer = load_tokenizer(yaml.safe_load(block)["name"])
        assert tokenizer.impl == impl
        assert tokenizer.create_encoder(mode="as_is").ids(text) == wanted


# Oumi


@pytest.fixture
def repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders with the names that the document has for models on the Hub, and an adapter."""
    monkeypatch.chdir(tmp_path)
    llama3 = load_tokenizer(DATA / "tokenizers" / "llama3" / "tokenizer.model").hf
    smol = load_tokenizer(DATA / "tokenizers" / "qwen2.5").hf  # it has the pad token that the document asks for
    toys = {"HuggingFaceTB/SmolLM-135M": smol, "meta-llama/Llama-3.2-3B-Instruct": llama3}
    for name, tokenizer in toys.items():
        small("llama3_2_3b", vocab_size=151936).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    from graftwork import ModelParams, PeftParams, attach_adapter, build_model

    model = build_model(ModelParams(model_name="meta-llama/Llama-3.2-3B-Instruct"))
    attach_adapter(model, PeftParams(lora_target_modules=["q_proj"])).save_pretrained(tmp_path / "path/to/adapter")
    return tmp_path


def test_oumis_python(repositories: Path) -> None:
    names: dict[str, Any] = {}
    blocks = snippets("oumi-models.md", "python", Path("path/to"))
    assert len(blocks) == 5
    for code in blocks:
        run(code.replace("path/to/path/to", "path/to"), names)
        if "outputs" in names:
            outputs = names.pop("outputs")
            assert outputs.shape[1] <= 64 and outputs.shape[1] > names["input_data"]["input_ids"].shape[1]
            assert names["tokenizer"].pad_token == "<|endoftext|>"
    assert issubclass(names["MyCustomModel"], graftwork.BaseModel) and names["MyCustomModel"]({}) is not None
    assert names["tokenizer"].model_max_length == 4096
    assert names["tokenizer"].chat_template == graftwork.build_chat_template("llama3-instruct")
    kinds = {kind.__name__ for module in names["model"].modules() for kind in type(module).__mro__}
    assert "Linear8bitLt" in kinds
