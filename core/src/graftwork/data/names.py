"""The reader of a dataset's name, and what the dataset holds. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from graftwork.registry import get_registry

if TYPE_CHECKING:
    from pydantic import BaseModel

    from graftwork.config import DatasetParams
    from graftwork.data.readers import OpenRequest, RowSource
    from graftwork.specs import DatasetSpec

HUGGINGFACE = "huggingface"
"""The reader of what has the form of a Hub id and is nobody's name."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(name: str) -> bool:
    """Whether the name has the form ``org/name``."""
    return bool(_HUB_ID.fullmatch(name)) and ".." not in name and "--" not in name


class Datasets(Mapping[str, "DatasetSpec"]):
    """The table of datasets, and behind it every name of the form ``org/name``."""

    def __getitem__(self, name: str) -> DatasetSpec:
        """The record. Raises as a lookup in the registry does, with the nearest name."""
        table = get_registry().datasets
        if table.knows(name) or not is_hub_id(name):
            return table[name]
        return replace(table[HUGGINGFACE], name=name, aliases=())

    def __iter__(self) -> Iterator[str]:
        return iter(get_registry().datasets)

    def __len__(self) -> int:
        return len(get_registry().datasets)


def look_up(params: DatasetParams) -> tuple[DatasetSpec, BaseModel | None]:
    """The dataset's record, its schema told from its rows where the reader leaves that open, and its option block,
    validated.
    """
    spec = Datasets()[params.dataset_name]
    options = spec.params().model_validate(params.dataset_kwargs) if spec.params else None
    if spec.recognise is not None:
        spec = replace(spec, schema=_recognised(params.model_dump_json()))
    if getattr(options, "judged", False):
        spec = replace(spec, open=partial(_open_judged, spec))
    if params.holdout:
        spec = replace(spec, open=partial(_open_part, spec))
    return spec, options


def _open_judged(spec: DatasetSpec, request: OpenRequest) -> RowSource:
    from graftwork.data.readers import Judged

    return Judged(spec.open(request), getattr(request.params, "messages_field", None))


def _open_part(spec: DatasetSpec, request: OpenRequest) -> RowSource:
    from graftwork.data.holdout import Part, key_of

    return Part(spec.open(request), request.dataset, key_of(spec.schema, request.params))


@lru_cache(maxsize=64)
def _recognised(params: str) -> Any:
    """Asked many times for each run, and each time a file is opened or the Hub is asked."""
    from graftwork.config import DatasetParams
    from graftwork.data.readers import OpenRequest

    dataset = DatasetParams.model_validate_json(params)
    spec = Datasets()[dataset.dataset_name]
    options = spec.params().model_validate(dataset.dataset_kwargs) if spec.params else None
    assert spec.recognise is not None
    return spec.recognise(OpenRequest(dataset=dataset, params=options))
