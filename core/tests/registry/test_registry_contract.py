"""What a plugin built against graftwork 0.1 may count on, for as long as 0.x plugins are to load."""

from __future__ import annotations

from dataclasses import MISSING, FrozenInstanceError, fields, is_dataclass
from typing import Any

import pytest

from graftwork import specs
from graftwork.declarations import DECLARED, PRESETS

# The fields without a default at 0.1. A field that is added later has one, and none of these goes away.
REQUIRED_AT_0_1 = {
    "ModelFamily": {"name"},
    "Preset": {"name", "model_type", "values", "num_parameters"},
    "TokenizerSpec": {"name", "load", "files"},
    "ChatTemplate": {"name", "path"},
    "TrainerSpec": {"name", "build", "schemas"},
    "QuantizerSpec": {"name", "bits", "devices"},
    "DatasetSpec": {"name", "schema", "open"},
    "CollatorSpec": {"name", "schema", "build"},
    "EngineSpec": {"name", "build", "devices"},
    "CommandSpec": {"name", "help", "load"},
    "SourceSpec": {"name", "fetch"},
    "RewardSpec": {"name", "load"},
    "OptimizerSpec": {"name", "build"},
    "CheckpointFormat": {"name", "sniff", "open"},
    "AssetCardSource": {"name", "path"},
}
RECORDS = {kind.record.__name__: kind.record for kind in (*DECLARED, PRESETS)}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS.keys())
def test_new_fields_have_defaults(record: type[Any]) -> None:
    required = {one.name for one in fields(record) if one.default is MISSING and one.default_factory is MISSING}
    assert required == REQUIRED_AT_0_1[record.__name__]


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS.keys())
def test_records_are_frozen_slotted_and_keyword_only(record: type[Any]) -> None:
    values = dict.fromkeys(REQUIRED_AT_0_1[record.__name__], "x")
    made = record(**values)
    with pytest.raises(FrozenInstanceError):
        made.name = "y"
    assert not hasattr(made, "__dict__")
    with pytest.raises(TypeError):
        record(*values.values())
    assert made.aliases == ()


PARTS = {"MessageLayout", "RankLayout"}
"""What stands inside a record, and is none itself."""


def test_every_record_of_the_module_is_checked() -> None:
    assert {name for name, value in vars(specs).items() if is_dataclass(value)} == set(REQUIRED_AT_0_1) | PARTS
