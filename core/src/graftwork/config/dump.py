"""Configurations as YAML that reads back to the same."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel

from graftwork.config.base import Neutral
from graftwork.config.reader import CoreSchema

_OLD = yaml.SafeDumper.yaml_implicit_resolvers
_NEW = CoreSchema.yaml_implicit_resolvers


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 (PyYAML) or YAML 1.2 (this package) would read as something else."""

    yaml_implicit_resolvers = {key: [*_NEW.get(key, ()), *_OLD.get(key, ())] for key in {*_NEW, *_OLD}}

    def ignore_aliases(self, data: Any) -> bool:
        return True


def plain(params: BaseModel) -> dict[str, Any]:
    """A section as plain data, without the fields that only their neutral value is accepted for."""
    fields = type(params).model_fields.items()
    names = [name for name, field in fields if not any(isinstance(mark, Neutral) for mark in field.metadata)]
    return {name: _plain_value(getattr(params, name)) for name in names}


def _plain_value(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return plain(value)
    if isinstance(value, (list, tuple)):
        return [_plain_value(item) for item in value]
    return value


def to_yaml(params: BaseModel) -> str:
    """Readable YAML in the order of the fields."""
    return yaml.dump(plain(params), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
