"""``attn_implementation``: what there is on this machine, checked before a model is built with it."""

from __future__ import annotations

from graftwork.builders.extras import importable
from graftwork.errors import UsageError, did_you_mean

# The packages behind transformers' flash attentions. Without them transformers would fetch a kernel from the Hub.
_PACKAGES = {
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn.cute",
}


def check_attention(name: str | None, *, trust_remote_code: bool) -> None:
    """Raises :class:`UsageError` for an attention that is unknown, not installed, or code from the Hub."""
    if name is None:
        return
    if "/" in name:
        if trust_remote_code:
            return
        raise UsageError(
            f"model.attn_implementation {name!r} is a kernel that would be downloaded from the Hub and run: set "
            f"model.trust_remote_code=true if you trust it. {_available()}"
        )
    if name not in _known():
        raise UsageError(f"model.attn_implementation {name!r} is unknown: {did_you_mean(name, _installed())}")
    if name not in _installed():
        raise UsageError(
            f"model.attn_implementation {name!r} needs the package {_PACKAGES[name].partition('.')[0]}, which is not "
            f"installed. {_available()}"
        )


def missing_package(name: str | None) -> str | None:
    """The package that the attention ``name`` needs and that is not installed; nothing heavy is imported for it."""
    package = _PACKAGES.get(name or "")
    return package.partition(".")[0] if package and not importable(package) else None


def _known() -> set[str]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    # paged| names belong to transformers' own continuous batching, not to a model that is trained or generated with
    return {"eager", *(name for name in ALL_ATTENTION_FUNCTIONS.valid_keys() if not name.startswith("paged|"))}


def _installed() -> set[str]:
    return {name for name in _known() if name not in _PACKAGES or importable(_PACKAGES[name])}


def _available() -> str:
    return f"Available here: {', '.join(sorted(_installed()))}"
