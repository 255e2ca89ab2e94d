"""``check_run``: the whole report, part by part. A part that fails says so and takes no other with it."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from graftwork.check.configuration import configuration_part
from graftwork.check.data import data_part
from graftwork.check.memory import memory_part
from graftwork.check.report import Part, Report, said_once
from graftwork.check.resume import resume_part
from graftwork.check.steps import steps_part
from graftwork.check.subject import SAMPLE, Subject, reason_of
from graftwork.check.support import support_part
from graftwork.check.template import template_part
from graftwork.config.load import inspect_config

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PARTS = {
    "data": data_part,
    "template": template_part,
    "steps": steps_part,
    "memory": memory_part,
    "support": support_part,
    "resume": resume_part,
}


def check_run(path: str, overrides: Sequence[str] = (), *, limit: int | None = SAMPLE) -> Report:
    """Checks the configuration at ``path`` and all that it names; ``limit`` is how many rows of each dataset are
    looked at, None for all.

    Raises :class:`graftwork.errors.UsageError` only where there is no YAML to look at.
    """
    with quiet():
        config, problems = inspect_config(path, overrides)
        subject = Subject.of(config, limit, mistakes=tuple(problems.values()))
        parts = [configuration_part(config, problems)]
        for name, make in PARTS.items():
            try:
                parts.append(make(subject))
            except Exception as error:
                broken = Part(name, name.capitalize())
                broken.note(f"not looked at: {reason_of(error)}", cause=reason_of(error))
                parts.append(broken)
        said_once(parts)
    return Report(path, tuple(parts))


@contextmanager
def quiet() -> Iterator[None]:
    """Without notices: what they would say is in the report."""
    # Not by the loggers' levels: transformers sets its own when it is first imported, which may be in here.
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
