"""What lies beside a tokenizer's file: roles, added tokens and the chat template, as transformers saves them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")

_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """The settings in a tokenizer's folder; empty for a file that is read alone."""

    folder: Path | None = None
    roles: Mapping[str, str | None] = field(default_factory=dict)
    added: Mapping[str, int] = field(default_factory=dict)
    add_bos: bool = True
    chat_template: str | None = None


def read(path: Path) -> Beside:
    """The settings beside the tokenizer at ``path``: those in the folder, none where it is a single file."""
    if path.is_file():
        return Beside()
    settings = {**_json(path / "special_tokens_map.json"), **_json(path / "tokenizer_config.json")}
    added = dict(_json(path / "added_tokens.json"))
    added |= {_text(token): int(index) for index, token in (settings.get("added_tokens_decoder") or {}).items()}
    template = path / "chat_template.jinja"
    return Beside(
        folder=path,
        roles={role: _text(settings[role]) for role in ROLES if role in settings},
        added=added,
        add_bos=settings.get("add_bos_token", True),
        chat_template=template.read_text("utf-8") if template.is_file() else settings.get("chat_template"),
    )


def fast(
    backend: Backend, beside: Beside, roles: Mapping[str, str | None], kwargs: Mapping[str, Any]
) -> PreTrainedTokenizerFast:
    """``backend`` as transformers has it: with the settings of the folder, where there is one, and ``roles``."""
    from transformers import PreTrainedTokenizerFast

    given = {role: text for role, text in roles.items() if text is not None} | dict(kwargs)
    if beside.folder is None or not any((beside.folder / name).is_file() for name in _FILES):
        return PreTrainedTokenizerFast(tokenizer_object=backend, **given)
    with TemporaryDirectory() as name:
        for file in _FILES:
            if (beside.folder / file).is_file():
                shutil.copyfile(beside.folder / file, Path(name) / file)
        backend.save(str(Path(name) / "tokenizer.json"))
        return PreTrainedTokenizerFast.from_pretrained(name, **given)


def _json(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text("utf-8"))) if file.is_file() else {}


def _text(token: Any) -> Any:
    return token["content"] if isinstance(token, dict) else token
