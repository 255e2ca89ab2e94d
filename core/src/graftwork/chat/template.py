"""Which template is meant: a name, a file, Jinja source, or the one that comes with the model."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graftwork.errors import PluginError, UsageError

if TYPE_CHECKING:
    from graftwork.specs import ChatTemplate, ModelFamily

logger = logging.getLogger(__name__)

DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateSource:
    """A template's Jinja text, what it is called, where it came from, the texts that end a turn in it, and whether
    its outputs become tokens as one text or each on its own. ``forgets``: as in :class:`~graftwork.specs.ChatTemplate`.
    """

    source: str
    name: str | None
    origin: str
    stop: tuple[str, ...] = ()
    encoding: Literal["whole", "parts"] = "whole"
    forgets: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """How messages speak of it."""
        return f"'{self.name}'" if self.name else f"from {self.origin}"


def find_template(
    which: str | Path | TemplateSource | None = None, tokenizer: Any = None, family: ModelFamily | None = None
) -> TemplateSource:
    """The template that ``which`` means: Jinja source, a file, or a registered name.

    Without it (None or ``auto``): the tokenizer's own, else the family's where the vocabulary has its stop tokens,
    else ``default``, which is said once.
    Raises :class:`~graftwork.errors.UsageError` where there is no such file and
    :class:`~graftwork.errors.UnknownNameError` where there is no such name.
    """
    if isinstance(which, TemplateSource):
        return which
    if isinstance(which, Path):
        return _from_file(which.expanduser())
    if which is None or which.casefold() == "auto":
        return _own_template(tokenizer, family)
    if "{{" in which or "{%" in which:
        return _recognised(which, "the given text")
    if _looks_like_path(which):
        return _from_file(Path(which).expanduser())
    return _registered(which)


def _own_template(tokenizer: Any, family: ModelFamily | None) -> TemplateSource:
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict):
        own = _default_of(own)
    if own:
        return _recognised(own, "the tokenizer")
    if family is not None and family.chat_template and _fits(tokenizer, family.chat_template):
        return _registered(family.chat_template)
    _notice_default(str(getattr(tokenizer, "name_or_path", "") or "the tokenizer"))
    return _registered(DEFAULT)


def _fits(tokenizer: Any, name: str) -> bool:
    """Whether the vocabulary has the tokens that end a turn in the template ``name``."""
    from graftwork.registry import get_registry
    from graftwork.tokenizers.special import token_id

    template = get_registry().chat_templates.get_or_none(name)
    return template is not None and (
        tokenizer is None or all(token_id(tokenizer, text) is not None for text in template.stop)
    )


def _default_of(templates: dict[str, str]) -> str:
    if "default" in templates:
        return templates["default"]
    names = ", ".join(sorted(templates))
    raise UsageError(
        f"the tokenizer has several chat templates ({names}) and none is called 'default'; "
        "set model.chat_template to the text of the one that is meant"
    )


@lru_cache(maxsize=256)
def _notice_default(owner: str) -> None:
    logger.info("%s has no chat template: 'default' is used (set model.chat_template to choose another)", owner)


def _looks_like_path(which: str) -> bool:
    return which.startswith((".", "~", "/")) or which.endswith((".jinja", ".jinja2", ".j2")) or Path(which).is_file()


def _from_file(path: Path) -> TemplateSource:
    if not path.is_file():
        raise UsageError(f"chat template {path}: there is no such file; give a file, a template's name or its text")
    return _recognised(path.read_text("utf-8"), str(path))


def _registered(name: str) -> TemplateSource:
    from graftwork.registry import get_registry

    templates = get_registry().chat_templates
    record = templates[name]
    if not record.path.is_file():
        owner = templates.owner(name)
        raise PluginError(
            f"chat template {name!r}: there is no file {record.path}, which plugin {owner.name} "
            f"({owner.distribution} {owner.version}) declares: mend its path there, or reinstall that"
        )
    return _of_record(record)


def supporting(what: str) -> list[str]:
    """The names of the registered templates that support ``what`` (``tools``, ``system``, ``images``)."""
    from graftwork.registry import get_registry

    templates = get_registry().chat_templates
    return sorted(name for name in templates if what in templates[name].supports)


@lru_cache(maxsize=64)
def _of_record(record: ChatTemplate) -> TemplateSource:
    return TemplateSource(
        source=record.path.read_text("utf-8"),
        name=record.name,
        origin=f"the template {record.name}",
        stop=record.stop,
        encoding=record.encoding,
        forgets=record.forgets,
    )


@lru_cache(maxsize=64)
def _recognised(source: str, origin: str) -> TemplateSource:
    """A template that was saved with a tokenizer is still the registered one that it was copied from,
    and its turns end in the same texts.
    """
    from graftwork.registry import get_registry

    for name in (templates := get_registry().chat_templates):
        known = _of_record(templates[name])
        if known.source == source:
            return replace(known, origin=origin)
    return TemplateSource(source=source, name=None, origin=origin)
