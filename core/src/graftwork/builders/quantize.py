"""Which quantizer a configuration asks for, and what it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork.errors import ClashError, MissingExtraError, UsageError
from graftwork.registry import get_registry

if TYPE_CHECKING:
    import torch

    from graftwork.config import PeftParams
    from graftwork.specs import QuantizerSpec


def choose_quantizer(peft: PeftParams | None, device: torch.device) -> QuantizerSpec | None:
    """The quantizer that ``peft`` names, or the one of its ``q_lora_bits``; None where none is asked for.

    Raises :class:`MissingExtraError` where no installed plugin has one for these bits on this device.
    """
    if peft is None or not (peft.q_lora or peft.quantizer):
        return None
    table = get_registry().quantizers
    if peft.quantizer:
        return _usable(table[peft.quantizer], device)
    fitting = [spec for spec in table.values() if peft.q_lora_bits in spec.bits and device.type in spec.devices]
    if not fitting:
        raise MissingExtraError(_missing(peft.q_lora_bits, device))
    if len(fitting) > 1:
        names = ", ".join(f"{spec.name} ({table.owner(spec.name).distribution})" for spec in fitting)
        raise ClashError(
            f"peft.q_lora_bits {peft.q_lora_bits}: {names} can all do this; choose one with peft.quantizer"
        )
    return fitting[0]


def quantizer_options(spec: QuantizerSpec, peft: PeftParams) -> Any:
    """What the quantizer's functions get: its own parameter model, or ``peft`` where it declares none.

    A field of the parameter model that ``peft`` has too (``q_lora_bits``, ``bnb_4bit_quant_type``) is taken from
    there, unless ``peft.quantizer_kwargs`` says otherwise.
    """
    if spec.params is None:
        return peft
    model = spec.params()
    shared = {name: getattr(peft, name) for name in model.model_fields if name in type(peft).model_fields}
    return model.model_validate({**shared, **peft.quantizer_kwargs})


def _usable(spec: QuantizerSpec, device: torch.device) -> QuantizerSpec:
    if device.type not in spec.devices:
        raise UsageError(
            f"peft.quantizer {spec.name!r} runs on {', '.join(spec.devices)}, and the model goes to {device.type}"
        )
    return spec


def _missing(bits: int, device: torch.device) -> str:
    specs = get_registry().quantizers.values()
    installed = sorted(
        f"{spec.name} ({'/'.join(map(str, spec.bits))} bits on {'/'.join(spec.devices)})" for spec in specs
    )
    here = sorted({each for spec in specs if device.type in spec.devices for each in spec.bits})
    remedy = (
        f"Set it to {' or '.join(map(str, here))}"
        if here
        else "A quantizer plugin is needed: `pip install graftwork-bitsandbytes` brings 8 and 4 bits"
    )
    return (
        f"peft.q_lora_bits {bits}: no installed plugin quantizes to {bits} bits on {device.type}. {remedy}. "
        f"Installed: {', '.join(installed) or 'none'}"
    )
