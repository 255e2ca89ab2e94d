"""LoRA and its relatives on top of PEFT: attached, loaded, merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftwork.builders.extras import lazy_exports

if TYPE_CHECKING:
    from graftwork.adapters.attach import attach_adapter, load_adapter, save_adapter
    from graftwork.adapters.merge import merge_adapter
    from graftwork.adapters.targets import resolve_lora_targets

__all__ = ["attach_adapter", "load_adapter", "merge_adapter", "resolve_lora_targets", "save_adapter"]

__getattr__ = lazy_exports(
    __name__,
    {
        "attach_adapter": "graftwork.adapters.attach",
        "load_adapter": "graftwork.adapters.attach",
        "save_adapter": "graftwork.adapters.attach",
        "merge_adapter": "graftwork.adapters.merge",
        "resolve_lora_targets": "graftwork.adapters.targets",
    },
    globals(),
)
