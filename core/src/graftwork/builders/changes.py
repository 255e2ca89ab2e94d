"""Values of a configuration that are changed: laid over those that are there, and what is wrong with one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork.errors import ModelError
from graftwork.sources.config_keys import ROTARY

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


class ChangeError(ModelError):
    """A change that a configuration cannot have: ``keys`` are what is changed, ``text`` what is wrong.

    ``names`` are the keys that there are, where ``keys`` is none of them.
    """

    def __init__(
        self, text: str, keys: Collection[str], *, model_type: str = "", names: Collection[str] = (), head: str = ""
    ) -> None:
        super().__init__(head + text)
        self.text, self.keys, self.model_type, self.names = text, keys, model_type, names


def laid_over(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``changes`` over ``values``. The older spellings of rotary values go into ``rope_parameters`` where that is
    stated: transformers would read them only where it is not. ``rope_scaling`` replaces how frequencies are stretched.
    """
    rope, older = values.get("rope_parameters"), {key: changes[key] for key in ROTARY if key in changes}
    if not older or not isinstance(rope, dict) or "rope_parameters" in changes:
        return {**values, **changes}
    if any(isinstance(value, dict) for value in rope.values()):
        text = f"this model has rotary values for each kind of layer ({', '.join(rope)}): write rope_parameters"
        raise ChangeError(text, older, head=f"model.model_kwargs: {', '.join(older)}: ")
    if "rope_scaling" in older:
        scaling = older.pop("rope_scaling") or {"rope_type": "default"}
        rope = {**{key: value for key, value in rope.items() if key in ROTARY}, **scaling}
    rest = {key: value for key, value in changes.items() if key not in ROTARY}
    return {**values, **rest, "rope_parameters": {**rope, **older}}
