"""``load``: from a name, a folder or a file to a tokenizer, by the implementation that fits what is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.errors import ClashError, ModelError, UsageError, did_you_mean
from graftwork.registry import get_registry
from graftwork.sources.resolve import resolve
from graftwork.tokenizers.tokenizer import TokenizerConfig

if TYPE_CHECKING:
    from graftwork.sources.cards import CardTokenizer
    from graftwork.specs import ModelFamily, TokenizerSpec
    from graftwork.tokenizers.tokenizer import Tokenizer


def load(
    path_or_name: str | Path,
    *,
    impl: str | None = None,
    config: TokenizerConfig | Mapping[str, Any] | None = None,
    family: ModelFamily | str | None = None,
) -> Tokenizer:
    """See :func:`graftwork.load_tokenizer`."""
    if (card := _card(path_or_name)) is not None:
        own = {key: value for key, value in card.options.items() if key != "impl" or impl is None}
        path_or_name, config, family = card.place, own if config is None else config, family or card.family
    settings = _settings(config)
    if impl is not None and settings["impl"] not in (None, impl):
        raise UsageError(f"load_tokenizer: impl is {impl!r} and in the configuration {settings['impl']!r}; give one")
    path = _files(path_or_name)
    known = get_registry().families[family] if isinstance(family, str) else family or family_of_folder(path)
    spec = choose(path, impl or settings["impl"] or (known.tokenizer_impl if known else None))
    options = {"use_eot": settings["use_eot"], "split_regex": settings["split_regex"], "family": known}
    return spec.load(path, options)


def choose(path: Path, impl: str | None = None) -> TokenizerSpec:
    """The implementation named ``impl``, else the one that fits what is at ``path``."""
    registry = get_registry()
    if impl is not None:
        return registry.tokenizers[impl]
    fitting = [spec for spec in registry.tokenizers.values() if fits(spec, path)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        spellings = " or ".join(f"{registry.tokenizers.owner(spec.name).distribution}:{spec.name}" for spec in fitting)
        raise ClashError(f"tokenizer in {path}: several can read its files; set model.tokenizer_impl to {spellings}")
    looked_for = list(dict.fromkeys(name for spec in registry.tokenizers.values() for name in spec.files))
    raise ModelError(
        f"there is no tokenizer in {path} (looked for {', '.join(looked_for)}); "
        "set model.tokenizer_name to a folder or Hub id that has one"
    )


def fits(spec: TokenizerSpec, path: Path) -> bool:
    """Whether ``spec`` reads what is at ``path``: by its own judgement, else by the names of the files."""
    if spec.fits is not None:
        return spec.fits(path)
    if path.is_file():
        return any(path.match(name) for name in spec.files)
    return any(any(path.glob(name)) for name in spec.files)


def family_of_folder(folder: Path) -> ModelFamily | None:
    """The family that claims the model in ``folder``; None where there is no ``config.json``."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    values = json.loads(file.read_text("utf-8"))
    return get_registry().family_for(values.get("model_type"), tuple(values.get("architectures") or ()))


def _card(path_or_name: str | Path) -> CardTokenizer | None:
    """The tokenizer of the card that a name is, if it is one."""
    if isinstance(path_or_name, Path) or Path(path_or_name).expanduser().is_file():
        return None
    from graftwork.sources.cards import library

    card = resolve(path_or_name).card
    return library().tokenizer_of(card) if card is not None else None


def _files(path_or_name: str | Path) -> Path:
    """The file or folder itself, else what the name of a model leads to."""
    if isinstance(path_or_name, Path) or Path(path_or_name).expanduser().is_file():
        path = Path(path_or_name).expanduser().absolute()
        if path.exists():
            return path
        raise ModelError(f"tokenizer {path_or_name}: there is no such file or folder")
    from graftwork.builders.tokenizer import tokenizer_folder
    from graftwork.config import ModelParams

    return tokenizer_folder(ModelParams(model_name=path_or_name))


def _settings(config: TokenizerConfig | Mapping[str, Any] | None) -> dict[str, Any]:
    names = {item.name: item.default for item in fields(TokenizerConfig)}
    if config is None:
        return names
    given = dict(config) if isinstance(config, Mapping) else asdict(config)
    for name in given:
        if name not in names:
            raise UsageError(f"load_tokenizer: {name!r} is no option of a tokenizer; {did_you_mean(name, names)}")
    return {**names, **given}
