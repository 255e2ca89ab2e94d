"""``graftwork_adapter.json``: what an adapter's folder says of its base, beside PEFT's own ``adapter_config.json``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from graftwork.adapters.fingerprint import fingerprint
from graftwork.adapters.targets import REWARD_HEAD
from graftwork.checkpoints.huggingface import has_weights, read_json
from graftwork.sources import hub

FILE = "graftwork_adapter.json"
_ATTRIBUTE = "_graftwork_adapter_record"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord:
    """``fingerprint`` of the folder that the base was loaded from, before it was quantized or got new rows; None where
    there is no folder (a preset). ``embedding_rows`` counts the embeddings' rows, those of added tokens included.
    ``pad_token_id`` is that of a reward model, which finds the end of a text by it; None for others.
    """

    base: str | None = None
    fingerprint: str | None = None
    embedding_rows: int | None = None
    pad_token_id: int | None = None


def record_of(model: Any) -> AdapterRecord:
    """What is to be recorded of ``model`` as a base, as it is now."""
    folder = folder_of(model)
    return AdapterRecord(
        base=getattr(model, "name_or_path", None) or None,
        fingerprint=fingerprint(folder) if folder is not None and has_weights(folder) else None,
        embedding_rows=rows_of(model),
    )


def remember(model: Any, record: AdapterRecord) -> None:
    """Keeps the record of a base on it, for :func:`write_record`."""
    setattr(model, _ATTRIBUTE, record)


def write_record(folder: Path, adapted: Any) -> None:
    """Writes the record of a ``PeftModel``'s base beside its adapter; nothing where it was not made here."""
    base = adapted.get_base_model()
    record = getattr(base, _ATTRIBUTE, None)
    if record is not None and hasattr(base, REWARD_HEAD):
        record = replace(record, pad_token_id=getattr(base.config, "pad_token_id", None))
    if record is not None:
        (folder / FILE).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")


def read_record(folder: Path) -> AdapterRecord:
    """The record in an adapter's folder; an empty one where another tool wrote the adapter."""
    if not (folder / FILE).is_file():
        return AdapterRecord()
    values = read_json(folder / FILE)
    return AdapterRecord(**{field.name: values.get(field.name) for field in fields(AdapterRecord)})


def folder_of(model: Any) -> Path | None:
    """The folder that a model was loaded from; None where it is not known or not here."""
    name = getattr(model, "name_or_path", "")
    if not name:
        return None
    path = Path(name) if Path(name).is_absolute() else hub.cached(name)
    return path if path is not None and path.is_dir() else None


def rows_of(model: Any) -> int | None:
    """The number of rows of a model's embeddings."""
    getter = getattr(model, "get_input_embeddings", None)
    embeddings = getter() if getter else None
    weight = getattr(embeddings, "weight", None)
    return None if weight is None else int(weight.shape[0])
