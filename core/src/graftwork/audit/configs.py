"""Keys of JSON and YAML files that make a library fetch, import or run something.

Read off the sources of transformers 5.23 (dynamic_module_utils, modeling_utils, configuration_utils, pipelines,
generation/utils, integrations/hub_kernels, processing_utils), peft 0.21 (auto, tuners/lora/tp_layer), mlx-lm (utils:
``model_file``) and sentence-transformers (``modules.json``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from graftwork.audit.finding import Finding
from graftwork.audit.templates import check_template

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Place = tuple[str, Any]
    """A value and its place in the file."""

_MOST_BYTES = 32 * 2**20
# Their keys are words of a vocabulary
_VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json", "tekken.json", "encoder.json")
_MODULE = re.compile(r"[\w.]+")
_REMOVE = "remove the key; graftwork does not obey it"


def _names_anything(value: Any) -> bool:
    return value not in (None, False, "", [], {})


def _names_a_kernel(value: Any) -> bool:
    """``org/name`` is a repository of kernels on the Hub; ``sdpa`` and the like are part of transformers."""
    if isinstance(value, Mapping):
        return any(map(_names_a_kernel, value.values()))
    return isinstance(value, str) and ("/" in value or "|" in value)


def _names_foreign_class(value: Any) -> bool:
    return isinstance(value, str) and not value.isidentifier()


def _is_foreign(*packages: str) -> Callable[[Any], bool]:
    def foreign(value: Any) -> bool:
        return isinstance(value, str) and not any(value == each or value.startswith(f"{each}.") for each in packages)

    return foreign


_KERNELS = "names kernels on the Hub, which are machine code that transformers fetches and runs"
_CODE: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "auto_map": (_names_anything, "names Python code that transformers imports where remote code is trusted"),
    "custom_pipelines": (_names_anything, "names a pipeline in Python that transformers imports"),
    "custom_generate": (_names_anything, "names Python code that takes the place of generate()"),
    "model_file": (_names_anything, "names a Python file that mlx-lm runs when it loads the model"),
    "trust_remote_code": (_names_anything, "vouches for the model's own code; only who loads it can"),
    "allow_all_kernels": (_names_anything, "vouches for kernels from the Hub; only who loads the model can"),
    "kernel_config": (_names_anything, _KERNELS),
    "attn_implementation": (_names_a_kernel, _KERNELS),
    "_attn_implementation": (_names_a_kernel, _KERNELS),
    "_attn_implementation_internal": (_names_a_kernel, f"{_KERNELS}, past trust_remote_code in old versions"),
    "experts_implementation": (_names_a_kernel, _KERNELS),
    "_experts_implementation": (_names_a_kernel, _KERNELS),
    "_experts_implementation_internal": (_names_a_kernel, _KERNELS),
    "parent_library": (_is_foreign("transformers", "diffusers"), "names a module that peft imports"),
    "megatron_core": (_is_foreign("megatron"), "names a module that peft imports"),
    "quant_method": (_names_foreign_class, "is no quantization method but a path; a loader may import it"),
    **dict.fromkeys(
        ("tokenizer_class", "processor_class", "image_processor_type", "feature_extractor_type", "model_type"),
        (_names_foreign_class, "is no class of transformers but a path; a loader may import it"),
    ),
}
_ELSEWHERE: Mapping[str, str] = {
    "base_model_name_or_path": "this adapter is put on that model, which is loaded too",
    "audio_tokenizer_name_or_path": "transformers loads that model too",
    "transformers_weights": "transformers takes the weights from that file",
}
# Decoding methods that transformers 5 fetches as Python code from transformers-community on the Hub
_FETCHED_DECODING: Mapping[str, Callable[[Any], bool]] = {
    "penalty_alpha": lambda value: isinstance(value, int | float) and value > 0,
    "num_beam_groups": lambda value: isinstance(value, int) and value > 1,
    "dola_layers": _names_anything,
    "force_words_ids": _names_anything,
    "constraints": _names_anything,
}


def check_json(file: Path, name: str) -> Iterator[Finding]:
    """The keys of a JSON file, at whatever depth, and the chat templates in it."""
    if file.name in _VOCABULARIES:
        return
    if file.stat().st_size > _MOST_BYTES:
        yield _too_large(name)
        return
    twice: list[str] = []
    try:
        document = json.loads(file.read_bytes(), object_pairs_hook=lambda pairs: _object(pairs, twice))
        places = list(_walk(document, ""))
    except (ValueError, RecursionError) as error:
        what = f"not readable as JSON ({str(error)[:100]})"
        yield Finding(severity="note", file=name, what=what, remedy="fetch it again")
        return
    for key in twice:
        what = "this key stands twice in one object: two readers may see different values"
        yield Finding(severity="lie", file=name, key=key, what=what, remedy="keep one of them")
    for place, value in places:
        yield from _check_value(name, place, value)
    if file.name == "modules.json" and isinstance(document, list):
        yield from _check_modules(document, name)
    if isinstance(document, dict):
        for place, source in _templates(document):
            yield from check_template(source, name, place)


def check_yaml(file: Path, name: str) -> Iterator[Finding]:
    """Tags with which ``yaml.load`` makes Python objects, by calling them."""
    if file.stat().st_size > _MOST_BYTES:
        yield _too_large(name)
        return
    text = file.read_text(encoding="utf-8", errors="replace")
    for tag in sorted(set(re.findall(r"(?:!!|tag:yaml\.org,2002:)python/[\w/.:]+", text))):
        what = "a tag with which a YAML reader that is not a safe one calls Python"
        yield Finding(severity="code", file=name, key=tag, what=what, remedy="remove it")


def _too_large(name: str) -> Finding:
    what = f"larger than a configuration is ({_MOST_BYTES >> 20} MB), so it was not read"
    return Finding(severity="lie", file=name, what=what, remedy="remove it, or look through it yourself")


def _check_value(name: str, place: str, value: Any) -> Iterator[Finding]:
    key = re.split(r"[.\[]", place)[-1]
    if key in _CODE and _CODE[key][0](value):
        yield _finding("code", name, place, value, _CODE[key][1], _REMOVE)
    if key in _ELSEWHERE and _names_anything(value):
        if key == "transformers_weights" and not _leaves(value):
            return
        severity = "lie" if key == "transformers_weights" else "note"
        yield _finding(severity, name, place, value, _ELSEWHERE[key], "audit that too before you load this")
    elif (key.endswith("_file") or key == "weights_path") and key not in _CODE and _leaves(value):
        what = "names a file outside this folder"
        yield _finding("lie", name, place, value, what, "give the name of a file in the folder, or remove the key")
    if name.endswith("generation_config.json") and key in _FETCHED_DECODING and _FETCHED_DECODING[key](value):
        what = "asks for a decoding method that transformers 5 fetches as Python code from the Hub"
        yield _finding("note", name, place, value, what, "remove the key for plain sampling or beam search")


def _leaves(value: Any) -> bool:
    return isinstance(value, str) and (value.startswith(("/", "~", "\\")) or ".." in re.split(r"[/\\]", value))


def _check_modules(document: list[Any], name: str) -> Iterator[Finding]:
    foreign = _is_foreign("sentence_transformers")
    for index, entry in enumerate(document):
        if isinstance(entry, dict) and foreign(entry.get("type")):
            what = "names a class that sentence-transformers imports"
            yield _finding("code", name, f"[{index}].type", entry["type"], what, "remove it, or trust its author")


def _templates(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    found = document.get("chat_template")
    if isinstance(found, str):
        yield "chat_template", found
    entries = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, entry in entries:
        source = entry.get("template") if isinstance(entry, dict) else entry
        if isinstance(source, str):
            label = entry.get("name", key) if isinstance(entry, dict) else key
            yield f"chat_template[{label}]", source


def _object(pairs: list[tuple[str, Any]], twice: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            twice.append(key)
        result[key] = value
    return result


def _walk(value: Any, place: str) -> Iterator[Place]:
    if place:
        yield place, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _walk(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, dict | list):
                yield from _walk(item, f"{place}[{index}]")


def _finding(severity: str, file: str, key: str, value: Any, what: str, remedy: str) -> Finding:
    text = value if isinstance(value, str) else json.dumps(value)
    return Finding(severity=severity, file=file, key=key, value=text[:200], what=what, remedy=remedy)  # type: ignore[arg-type]
