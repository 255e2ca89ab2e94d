"""``graft audit``: every kind of finding, folders without any, and that nothing in them is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from graftwork.audit import Finding, audit
from graftwork.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    Graft = Callable[..., tuple[int, str, str]]

DATA = Path(os.environ.get("GRAFTWORK_TEST_DATA", "/nowhere"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="real files: set GRAFTWORK_TEST_DATA")


class Runs:
    """Pickled, it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder without anything to find."""
    place = tmp_path / "model"
    place.mkdir()
    (place / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (place / "generation_config.json").write_text('{"eos_token_id": [1, 2], "num_beam_groups": 1}')
    template = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    (place / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "tokenizer_class": "X"}))
    (place / "chat_template.jinja").write_text(template)
    (place / "tokenizer.json").write_text('{"model": {"vocab": {"auto_map": 1, "model_file": 2}}}')
    (place / "README.md").write_text("A model.")
    save_file({"a": torch.ones(2, 3), "b": torch.ones(4)}, place / "model.safetensors")
    return place


def found(path: Path) -> list[Finding]:
    return list(audit(path).findings)


def only(path: Path) -> Finding:
    (finding,) = found(path)
    return finding


def test_a_clean_folder_has_no_findings(folder: Path, graft: Graft) -> None:
    assert found(folder) == []
    code, out, err = graft("audit", folder)
    assert (code, out, err) == (0, f"{folder}: 7 files, plain data\n", "")


@needs_data
@pytest.mark.parametrize("part", ["weights/stories260K/hf", "weights/stories260K", "tokenizers", "templates"])
def test_real_folders_are_clean(part: str) -> None:
    assert found(DATA / part) == []


@needs_data
def test_a_real_pickle_of_tensors_is_a_note(graft: Graft) -> None:
    file = DATA / "weights" / "torchtune_tiny_fair_checkpoint.pt"
    assert only(file).severity == "note"
    assert only(file).what == "a pickle that holds 21 tensors and names nothing else"
    assert graft("audit", file)[0] == 0


# Keys of configurations

CODE_KEYS = [
    ("config.json", {"auto_map": {"AutoModelForCausalLM": "modeling.X"}}, "auto_map", "imports where remote code"),
    ("config.json", {"auto_map": {"AutoConfig": "org/name--c.X"}}, "auto_map", "names Python code"),
    ("config.json", {"text_config": {"auto_map": {"A": "b.C"}}}, "text_config.auto_map", "names Python code"),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["t.T", None]}}, "auto_map", "names Python code"),
    ("preprocessor_config.json", {"auto_map": {"AutoProcessor": "p.P"}}, "auto_map", "names Python code"),
    ("tokenizer_config.json", {"tokenizer_class": "own.Tokenizer"}, "tokenizer_class", "no class of transformers"),
    ("config.json", {"custom_pipelines": {"t": {"impl": "p.P"}}}, "custom_pipelines", "pipeline in Python"),
    ("generation_config.json", {"custom_generate": "org/name"}, "custom_generate", "in place of|place of generate"),
    ("config.json", {"model_file": "evil.py"}, "model_file", "mlx-lm runs"),
    ("config.json", {"trust_remote_code": True}, "trust_remote_code", "only who loads it can"),
    ("config.json", {"attn_implementation": "org/kernel"}, "attn_implementation", "kernels on the Hub"),
    ("config.json", {"_attn_implementation": "org/k@v1:f"}, "_attn_implementation", "kernels on the Hub"),
    ("config.json", {"_attn_implementation_internal": "o/k"}, "_attn_implementation_internal", "past trust_remote"),
    ("config.json", {"attn_implementation": {"text_config": "o/k"}}, "attn_implementation", "kernels on the Hub"),
    ("config.json", {"experts_implementation": "o/k"}, "experts_implementation", "kernels on the Hub"),
    ("config.json", {"_experts_implementation_internal": "o/k"}, "_experts_implementation_internal", "kernels on"),
    ("config.json", {"a": [{"kernel_config": {"k": "o/k:L"}}]}, "a[0].kernel_config", "kernels on the Hub"),
    ("config.json", {"quantization_config": {"quant_method": "a.b"}}, "quantization_config.quant_method", "a path"),
    (
        "adapter_config.json",
        {"auto_mapping": {"base_model_class": "X", "parent_library": "evil"}},
        "auto_mapping.parent_library",
        "a module that peft imports",
    ),
    ("adapter_config.json", {"megatron_core": "evil.core"}, "megatron_core", "a module that peft imports"),
]


@pytest.mark.parametrize(("file", "values", "key", "what"), CODE_KEYS)
def test_keys_that_name_code(folder: Path, file: str, values: dict[str, Any], key: str, what: str) -> None:
    (folder / file).write_text(json.dumps({"model_type": "llama", **values}))
    finding = only(folder)
    assert (finding.severity, finding.file, finding.key) == ("code", file, key)
    assert re.search(what, finding.what)
    assert finding.remedy == "remove the key; graftwork does not obey it"
    assert finding.value


@pytest.mark.parametrize(
    "values",
    [
        {"attn_implementation": "sdpa", "_attn_implementation_internal": "eager", "auto_map": None},
        {"trust_remote_code": False, "kernel_config": None, "quantization_config": {"quant_method": "bitsandbytes"}},
        {"megatron_core": "megatron.core", "auto_mapping": {"parent_library": "transformers.models.llama"}},
        {"tokenizer_class": "LlamaTokenizer", "tokenizer_file": "tokenizer.json", "auto_map": {}},
    ],
)
def test_harmless_values_of_these_keys(folder: Path, values: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(values))
    assert found(folder) == []


@pytest.mark.parametrize(
    ("file", "values", "severity", "what"),
    [
        ("adapter_config.json", {"base_model_name_or_path": "org/base"}, "note", "which is loaded too"),
        ("processor_config.json", {"audio_tokenizer_name_or_path": "o/n"}, "note", "loads that model too"),
        ("generation_config.json", {"penalty_alpha": 0.6, "top_k": 4}, "note", "fetches as Python code from the Hub"),
        ("generation_config.json", {"num_beam_groups": 3}, "note", "fetches as Python code from the Hub"),
        ("config.json", {"transformers_weights": "../../w.safetensors"}, "lie", "takes the weights from that file"),
        ("tokenizer_config.json", {"vocab_file": "/etc/passwd"}, "lie", "names a file outside this folder"),
        ("tokenizer_config.json", {"tokenizer_file": "a/../../x"}, "lie", "names a file outside this folder"),
    ],
)
def test_keys_that_lead_elsewhere(folder: Path, file: str, values: dict[str, Any], severity: str, what: str) -> None:
    (folder / file).write_text(json.dumps(values))
    finding = only(folder)
    assert (finding.severity, finding.file) == (severity, file)
    assert what in finding.what


def test_a_key_that_stands_twice(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", "x": {"a": 1, "a": 2}}')
    assert only(folder).severity == "lie"
    assert only(folder).key == "a"
    assert "stands twice" in only(folder).what


def test_json_that_is_none(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')
    assert (only(folder).severity, "not readable as JSON" in only(folder).what) == ("note", True)


@pytest.mark.parametrize("name", ["config.json", "more.yaml"])
def test_a_configuration_too_large_to_read_is_not_passed_over(folder: Path, name: str) -> None:
    with (folder / name).open("wb") as stream:
        stream.truncate(33 * 2**20)
    assert (only(folder).severity, "so it was not read" in only(folder).what) == ("lie", True)


@pytest.mark.parametrize("depth", [200, 900, 970, 100_000])
def test_json_of_any_depth(folder: Path, depth: int) -> None:
    (folder / "config.json").write_text('{"a":' * depth + "1" + "}" * depth)
    assert audit(folder).clean


def test_classes_in_modules_json(folder: Path) -> None:
    modules = [{"type": "sentence_transformers.models.Pooling"}, {"type": "own.Module"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    assert (only(folder).severity, only(folder).key, only(folder).value) == ("code", "[1].type", "own.Module")


def test_python_in_yaml(folder: Path) -> None:
    (folder / "card.yaml").write_text("a: !!python/object/apply:os.system ['touch ran']\nb: !own x\n")
    assert (only(folder).severity, only(folder).key) == ("code", "!!python/object/apply:os.system")


# Files that are code


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("modeling_own.py", b"print(1)", "Python code"),
        ("custom_generate/generate.py", b"def generate(): ...", "Python code"),
        ("notebook.ipynb", b"{}", "Python code"),
        ("cache.pyc", b"\x00", "Python code"),
        ("kernel.so", b"", "machine code"),
        ("libx.so.1.2", b"", "machine code"),
        ("extension.pyd", b"", "machine code"),
        ("innocent.txt", b"\x7fELF\x02\x01\x01\x00", "machine code"),
        ("innocent.dat", b"MZ\x90\x00\x03", "machine code"),
        ("setup.sh", b"echo", "a script"),
        ("innocent", b"#!/bin/sh\necho", "a script"),
    ],
)
def test_files_that_are_code(folder: Path, name: str, content: bytes, what: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    assert (only(folder).severity, only(folder).file) == ("code", name)
    assert only(folder).what.startswith(what)


# Pickles


def test_a_pickle_that_runs_something_is_named(folder: Path) -> None:
    torch.save({"a": torch.ones(1), "b": [Runs(os.system, "touch ran"), Runs(eval, "1")]}, folder / "model.bin")
    finding = only(folder)
    assert (finding.severity, finding.file, finding.key) == ("code", "model.bin", "pickle")
    assert "posix.system" in finding.value
    assert "builtin" in finding.value
    assert "_rebuild_tensor" not in finding.value
    assert "imports these when it is loaded" in finding.what
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["x.pkl", "x.bin", "x.safetensors", "weights", "x.joblib", "x.pt", "x.txt"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_bare_pickle_under_any_name(folder: Path, name: str, protocol: int) -> None:
    (folder / name).write_bytes(pickle.dumps(Runs(os.system, "touch ran"), protocol))
    assert [each.value for each in found(folder) if each.severity == "code"] == ["posix.system"]


def test_the_oldest_protocol_and_a_torn_pickle_still_show_their_names(folder: Path) -> None:
    (folder / "a.bin").write_bytes(pickle.dumps(Runs(os.system, "x"), 0))
    (folder / "b.pkl").write_bytes(pickle.dumps(Runs(os.system, "x"), 4)[:-1] + b"h\xffR")
    assert [(each.severity, each.value) for each in found(folder)] == [("code", "posix.system")] * 2


def test_a_pickle_that_cannot_be_followed_is_no_plain_data(folder: Path) -> None:
    (folder / "a.pkl").write_bytes(b"\x80\x04h\x05.")
    assert (only(folder).severity, "cannot be followed to its end" in only(folder).what) == ("code", True)


def test_numbers_without_a_header_are_no_pickle(folder: Path) -> None:
    (folder / "llama2c.bin").write_bytes(np.random.default_rng(0).standard_normal(999).astype("f4").tobytes())
    assert found(folder) == []


def test_pickles_of_tensors_and_of_plain_data_are_notes(folder: Path, graft: Graft) -> None:
    torch.save({"a": torch.ones(1)}, folder / "model.bin")
    torch.save({"state": {0: {"step": 3}}, "groups": [{1, 2}]}, folder / "optimizer.pt")
    (folder / "rng.pkl").write_bytes(pickle.dumps({"numpy": np.arange(3), "seed": 1}))
    assert [(each.file, each.severity) for each in found(folder)] == [
        ("model.bin", "note"),
        ("optimizer.pt", "note"),
        ("rng.pkl", "note"),
    ]
    assert graft("audit", folder)[0] == 0


def test_a_tensor_that_is_a_bomb_is_a_lie(folder: Path) -> None:
    torch.save({"a": torch.ones(1).expand(2**40)}, folder / "model.bin")
    assert only(folder).severity == "lie"
    assert "would grow when it is copied" in only(folder).what


def test_a_torchscript_program(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.pt", "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps({}, 2))
        archive.writestr("m/code/x.py", "def forward(self): ...")
    assert (only(folder).severity, only(folder).what) == ("code", "a TorchScript program")


def test_pickles_in_archives_and_arrays(folder: Path) -> None:
    with zipfile.ZipFile(folder / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("deep/x", pickle.dumps(Runs(os.system, "x")))
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(folder / "numbers.npy", np.arange(3))
    with tarfile.open(folder / "old.pt", "w") as tar:
        tar.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    assert [(each.file, each.severity, each.value) for each in found(folder)] == [
        ("archive.zip", "code", "posix.system"),
        ("objects.npy", "code", "O"),
        ("old.pt", "code", ""),
    ]


@pytest.mark.parametrize(
    "head", ["'descr': 'object', ", "'shape': (1,), " + " " * 600 + "'descr': '|O', ", '"descr": "O8", ', "?"]
)
@pytest.mark.parametrize("packed", [False, True])
def test_an_array_of_objects_however_it_says_so(folder: Path, head: str, packed: bool) -> None:
    header = f"{{'fortran_order': False, {head}}}\n".encode()
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    if packed:
        with zipfile.ZipFile(folder / "a.npz", "w") as archive:
            archive.writestr("a.npy", array)
    else:
        (folder / "a.npy").write_bytes(array)
    assert [each.severity for each in found(folder)] == ["code"]


def test_arrays_of_numbers_texts_and_records_are_plain(folder: Path) -> None:
    fields: Any = [("x", "<f4", (2,)), ("y", [("when", "<M8[ns]"), ("name", "<U8")])]
    kinds: list[Any] = [fields, "?", ">i8", "S3", "c16"]
    for index, kind in enumerate(kinds):
        np.save(folder / f"{index}.npy", np.zeros(2, dtype=kind))
    np.savez(folder / "all.npz", a=np.zeros(2, dtype=np.dtype(fields)))
    assert audit(folder).clean


@pytest.mark.parametrize("length", [128, 384, 640])
def test_a_safetensors_header_that_begins_like_a_pickle_is_none(folder: Path, length: int) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).ljust(length).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    assert found(folder) == []


# Chat templates

HOSTILE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages['__class__'] }}",
    "{{ messages|attr('__class__') }}",
    "{{ messages|map(attribute='__class__.__base__')|list }}",
    "{% set a = '__cl' ~ 'ass__' %}{{ messages[a] }}",
    "{{ messages|attr('_' ~ '_class_' ~ '_') }}",
    "{{ cycler.__init__.__globals__.os.system('touch ran') }}",
    "{{ namespace.mro() }}",
    "{% if false %}{{ self._TemplateReference__context }}{% endif %}",
    "{% set x = '%c%cclass%c%c'|format(95, 95, 95, 95) %}{{ ''[x].y }}",
    "{% include '/etc/passwd' %}",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    "{{ messages[('_' * 2) + 'class' + ('_' * 2)].x }}",
    "{% if messages|length > 2 %}{{ ''.__class__ }}{% endif %}",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_a_template_that_reaches_beyond_data(folder: Path, source: str) -> None:
    (folder / "chat_template.jinja").write_text(source)
    findings = found(folder)
    assert {(each.severity, each.file) for each in findings} == {("code", "chat_template.jinja")}
    assert "reaches beyond the conversation" in findings[0].what
    assert "graft templates ls" in findings[0].remedy
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("file", "values", "key"),
    [
        ("tokenizer_config.json", {"chat_template": HOSTILE[0]}, "chat_template"),
        ("tokenizer_config.json", {"chat_template": [{"name": "t", "template": HOSTILE[0]}]}, "chat_template[t]"),
        ("chat_template.json", {"chat_template": HOSTILE[0]}, "chat_template"),
        ("processor_config.json", {"chat_template": {"t": HOSTILE[0]}}, "chat_template[t]"),
    ],
)
def test_templates_in_json(folder: Path, file: str, values: dict[str, Any], key: str) -> None:
    (folder / file).write_text(json.dumps(values))
    assert {(each.severity, each.file, each.key) for each in found(folder)} == {("code", file, key)}


def test_templates_in_a_folder_of_more(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text(HOSTILE[0])
    assert {each.file for each in found(folder)} == {"additional_chat_templates/rag.jinja"}


def test_a_template_that_never_ends(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
    )
    assert (only(folder).severity, only(folder).what.startswith("it would hang")) == ("lie", True)


@pytest.mark.parametrize(
    ("source", "severities"),
    [
        ("{{ 1 / 0 }}{{ 2.0 ** 100000 }}", []),
        ("{{ messages|attr }}", ["code"]),
        ("{{ messages|attr(name='a') }}", ["code"]),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", ["lie"]),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", ["note"]),
    ],
)
def test_a_template_that_fails_in_a_way_of_its_own(folder: Path, source: str, severities: list[str]) -> None:
    (folder / "chat_template.jinja").write_text(source)
    assert [each.severity for each in found(folder)] == severities


def test_a_template_that_is_no_jinja_or_refuses_a_role(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no') if messages|length > 1 }}{{ messages[0].x }}")
    assert found(folder) == []
    (folder / "chat_template.jinja").write_text("{% if %}")
    assert (only(folder).severity, "not valid Jinja: line 1" in only(folder).what) == ("note", True)


def _gguf(*templates: str) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    keys = [
        text("general.alignment") + struct.pack("<II", 4, 32),
        text("tokenizer.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
        text("tokenizer.scores") + struct.pack("<IIQ", 9, 6, 3) + bytes(12),
        *(text("tokenizer.chat_template") + struct.pack("<I", 8) + text(template) for template in templates),
    ]
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, len(keys)) + b"".join(keys)


def test_the_template_in_a_gguf_file(folder: Path) -> None:
    (folder / "model.gguf").write_bytes(_gguf("{{ messages[0].content }}"))
    assert found(folder) == []
    (folder / "model.gguf").write_bytes(_gguf(HOSTILE[0]))
    assert {(each.severity, each.file, each.key) for each in found(folder)} == {
        ("code", "model.gguf", "tokenizer.chat_template")
    }
    (folder / "model.gguf").write_bytes(_gguf(HOSTILE[0], "{{ messages[0].content }}"))
    assert {each.severity for each in found(folder)} == {"code"}, "whichever of the two a reader takes"
    (folder / "model.gguf").write_bytes(_gguf(HOSTILE[0])[:-9])
    assert (only(folder).severity, "header cannot be read" in only(folder).what) == ("lie", True)


# Links


def test_links_that_leave_the_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (folder / "notes.txt").symlink_to("../secret")
    (folder / "etc").symlink_to("/etc")
    (folder / "gone").symlink_to("nothing-here")
    (folder / "copy.json").symlink_to("config.json")
    assert [(each.severity, each.file, each.value) for each in found(folder)] == [
        ("lie", "etc", "/etc"),
        ("lie", "gone", "nothing-here"),
        ("lie", "notes.txt", "../secret"),
    ]


def test_a_link_to_itself(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    assert (only(folder).severity, only(folder).what) == ("lie", "this link leads to itself")


def test_the_hubs_cache_is_made_of_links(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        file.rename(repository / "blobs" / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert found(snapshot) == []
    (snapshot / "x").symlink_to("../../../secret")
    assert only(snapshot).file == "x"


# Weights


def _safetensors(path: Path, header: str, size: int) -> None:
    content = header.encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content + bytes(size))


def _entry(name: str, begin: int, end: int, shape: str = "[4]", dtype: str = "U8") -> str:
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}'


@pytest.mark.parametrize(
    ("header", "key", "what"),
    [
        (f"{{{_entry('a', 0, 4)},{_entry('b', 2, 6)}}}", "b", "its bytes lie on those of another tensor"),
        (f"{{{_entry('a', 0, 4)},{_entry('b', 4, 12, '[8]')}}}", "b", "it would lie at bytes 4 to 12 of 8"),
        (f"{{{_entry('a', 0, 4)},{_entry('a', 4, 8)}}}", "a", "this name stands twice in the header"),
        (f"{{{_entry('a', 0, 8)}}}", "a", "it has 8 bytes, and its shape and dtype need 4"),
        (f"{{{_entry('a', 0, 8, '[2]', 'F4')}}}", "a", "it has 8 bytes, and its shape and dtype need 1"),
        (f"{{{_entry('a', 0, 8, '[-8]')}}}", "a", "its shape or its place is no number"),
        (f"{{{_entry('a', 0, 8, '[8]', 'X8')}}}", "a", "its dtype 'X8' is not known"),
        ('{"a":{"dtype":"U8"}}', "a", "its entry in the header is none of a tensor"),
        ('{"a":3}', "a", "its entry in the header is none of a tensor"),
        (f"{{{_entry('a', 4, 8)}}}", "a", "4 bytes before it belong to no tensor"),
        (f"{{{_entry('a', 0, 4)}}}", "", "4 bytes at its end belong to no tensor"),
        ("[]", "", "its header is no JSON object"),
        ("{", "", "this is no safetensors file"),
    ],
)
def test_headers_that_lie(folder: Path, header: str, key: str, what: str) -> None:
    _safetensors(folder / "model.safetensors", header, 8)
    findings = found(folder)
    assert {each.severity for each in findings} == {"lie"}
    assert any(each.key == key and what in each.what for each in findings)


def test_a_file_that_was_cut_off_is_one_finding(folder: Path) -> None:
    entries = ",".join(_entry(name, at, at + 4) for at, name in zip(range(0, 20, 4), "abcde", strict=True))
    _safetensors(folder / "model.safetensors", f"{{{entries}}}", 6)
    finding = only(folder)
    assert finding.key == "b"
    assert finding.what == "it would lie at bytes 4 to 8 of 6, and 3 more beyond its end: the file was cut off"


def test_a_shape_larger_than_any_float(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**200, 10**200], "data_offsets": [0, 0]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "its shape and dtype need 40,000," in only(folder).what


def test_a_header_longer_than_its_file(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    assert "its header would be 1,099,511,627,776 bytes long" in only(folder).what


def test_an_index_that_leads_elsewhere(folder: Path) -> None:
    shards = {"a": "model.safetensors", "c": "model.safetensors", "d": "../x.safetensors", "e": "none.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert [(each.severity, each.key, each.value) for each in found(folder)] == [
        ("lie", "weight_map", "../x.safetensors"),
        ("lie", "c", "model.safetensors"),
        ("note", "weight_map", "none.safetensors"),
    ]
    (folder / "model.safetensors.index.json").write_text("[]")
    assert only(folder).what == "this is no index of shards"


# The command


def test_the_command_prints_and_exits_non_zero(folder: Path, graft: Graft) -> None:
    (folder / "modeling.py").write_text("x")
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "modeling.X"}}')
    (folder / "gone").symlink_to("nothing")
    code, out, _ = graft("audit", folder)
    assert code == 1
    assert out.splitlines()[0] == "could run code:"
    assert '  config.json: auto_map = {"AutoModel": "modeling.X"}' in out.splitlines()
    assert "is not what it says, or leads out of the folder:" in out
    assert out.splitlines()[-1] == f"{folder}: 9 files, 2 could run code, 1 not what they say"


def test_the_command_as_json(folder: Path, graft: Graft) -> None:
    (folder / "modeling.py").write_text("x")
    code, out, _ = graft("audit", folder, "--json")
    assert code == 1
    document = json.loads(out)
    assert (document["path"], document["files"], document["clean"]) == (str(folder), 8, False)
    assert document["findings"][0].keys() == {"severity", "file", "key", "value", "what", "remedy"}


def test_a_folder_that_is_not_there(tmp_path: Path, graft: Graft) -> None:
    with pytest.raises(ModelError, match=r"there is no file or folder .*graft download"):
        audit(tmp_path / "none")
    assert graft("audit", tmp_path / "none")[0] == 2


def test_an_escape_sequence_in_a_name_is_not_printed(folder: Path, graft: Graft) -> None:
    (folder / "\x1b[31mred.py").write_text("x")
    assert "\x1b" not in graft("audit", folder)[1]


def test_torch_and_numpy_are_not_imported(folder: Path) -> None:
    torch.save({"a": torch.ones(1)}, folder / "model.bin")
    code = f"""
import sys
from pathlib import Path
for name in ("torch", "transformers", "numpy"):
    sys.modules[name] = None
from graftwork.audit import audit
print(len(audit(Path({str(folder)!r})).findings))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "1\n"
