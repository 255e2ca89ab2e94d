"""The part of a check about what goes together: family, method, quantizer, adapter, engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork.check.report import Part
from graftwork.check.subject import reason_of
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from graftwork.check.subject import Subject


def support_part(subject: Subject) -> Part:
    """Each question by itself: one that cannot be answered says why."""
    part = Part("support", "What goes together")
    questions: dict[str, Callable[[Part, Subject], None]] = {
        "model": model,
        "method": method,
        "quantizer": quantizer,
        "adapter": adapter,
        "engine": engine,
    }
    for name, question in questions.items():
        try:
            question(part, subject)
        except Exception as error:
            part.error(f"{name}: {reason_of(error)}", cause=reason_of(error))
    return part


def model(part: Part, subject: Subject) -> None:
    """Which family serves the model, and what it proves."""
    from graftwork.builders.model import model_config

    config = model_config(subject.config.model)
    family = subject.family or family_of(subject)
    part.facts |= {"family": family.name, "model_type": config.model_type, "segments": family.segment_attention}
    known = family.name != "generic"
    text = f"family {family.name} serves {config.model_type}"
    if known and family.segment_attention:
        part.ok(f"{text}; that packed samples equal padded ones is proved by its tests")
    elif known:
        part.note(f"{text}; that packed samples equal padded ones is tried before the first step")
    else:
        part.warn(f"{text}: no plugin knows this architecture, so its template, stop tokens and packing are unproven")


def family_of(subject: Subject) -> Any:
    from graftwork.builders.family import family_of_params

    return family_of_params(subject.config.model)


def method(part: Part, subject: Subject) -> None:
    """Schemas and fields; that they fit was checked with the configuration. And what the method itself refuses,
    or doubts.
    """
    spec = subject.trainer
    owner = get_registry().trainers.owner(spec.name)
    part.facts |= {"schemas": list(spec.schemas), "ignored_fields": list(spec.ignored_fields)}
    takes = f"{spec.name} ({owner.distribution}) trains on {' or '.join(spec.schemas)} rows"
    (part.ok if subject.schema in spec.schemas else part.error)(f"{takes}; the data hold {subject.schema}")
    if spec.ignored_fields:
        part.note(f"{spec.name} cannot honour {', '.join(spec.ignored_fields)}: setting one of them is an error")
    if spec.refuse is not None:
        spec.refuse(subject.method_request())
    train = subject.splits.get("train", ())
    if spec.doubts is not None and train and not any(dataset.trouble for dataset in train):
        for doubt in spec.doubts(subject.method_request(), subject.limit):
            part.warn(doubt)
    training = subject.config.training
    optimizer = get_registry().optimizers[training.optimizer]
    part.facts["optimizer"] = optimizer.name


def quantizer(part: Part, subject: Subject) -> None:
    """Which quantizer is chosen, and whether an adapter can be trained on what it makes."""
    from graftwork.builders.dtype import choose_device_map, device_of
    from graftwork.builders.quantize import choose_quantizer

    config = subject.config
    device = device_of(choose_device_map(config.model.device_map))
    chosen = choose_quantizer(config.peft if config.training.use_peft else None, device)
    part.facts |= {"device": device.type, "quantizer": chosen.name if chosen else None}
    if chosen is None:
        return
    text = f"quantizer {chosen.name}: {'/'.join(map(str, chosen.bits))} bits on {', '.join(chosen.devices)}"
    (part.ok if chosen.trainable else part.error)(
        f"{text}; adapters can {'' if chosen.trainable else 'not '}be trained on what it makes"
    )


def adapter(part: Part, subject: Subject) -> None:
    """What the LoRA goes onto, tried on the model without weights."""
    config = subject.config
    if not config.training.use_peft:
        return
    from graftwork.adapters.attach import try_on, without_weights

    targets = sorted(try_on(without_weights(config.model), config).target_modules)
    part.facts["lora_targets"] = targets
    part.ok(f"LoRA of rank {config.peft.lora_r} goes onto {', '.join(targets)}")


def engine(part: Part, subject: Subject) -> None:
    """What runs the model afterwards."""
    engines = {name: sorted(spec.devices) for name, spec in get_registry().engines.items()}
    part.facts["engines"] = engines
    listed = ", ".join(f"{name} on {' and '.join(devices)}" for name, devices in engines.items())
    part.note(f"engines for what comes out: {listed or 'none'}")
