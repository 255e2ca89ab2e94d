"""The models and tokenizers of one family by name, under the names that fairseq2's users know.

    hub = model_hub("my_family")
    model = hub.load_model("my_family_1b")

A hub loads cards first; any other name of a model (a folder, a Hub id) works as well. Families offer their own as
``get_<family>_model_hub`` and ``get_<family>_tokenizer_hub`` (:func:`graftwork.specs.hubs`).
"""

from __future__ import annotations

from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.errors import ModelError, UnknownNameError, UsageError, did_you_mean
from graftwork.registry import get_registry
from graftwork.sources import local
from graftwork.sources.cards import Card, folder_of, library
from graftwork.sources.download import without_bars
from graftwork.sources.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from transformers import PretrainedConfig, PreTrainedModel

    from graftwork.sources.cards import Library
    from graftwork.specs import ModelFamily, Preset
    from graftwork.tokenizers.tokenizer import Tokenizer, TokenizerConfig

__all__ = ["ModelHub", "TokenizerHub", "load_model", "model_hub", "tokenizer_hub"]


def load_model(name: str | Path | Card, *, device: Any = None, dtype: Any = None) -> PreTrainedModel:
    """The model of a card, a folder or a Hub id with its weights, in evaluation mode.

    ``device`` and ``dtype`` are torch's, or their names; by default the best device here, and the checkpoint's dtype.
    """
    from graftwork.builders.model import build_model
    from graftwork.config import ModelParams

    return build_model(
        ModelParams(
            model_name=_spelling(name), device_map=_device(device), torch_dtype="auto" if dtype is None else dtype
        )
    )


def model_hub(family: str) -> ModelHub:
    """The models of the family of this name."""
    return ModelHub(get_registry().families[family])


def tokenizer_hub(family: str) -> TokenizerHub:
    """The tokenizers of the family of this name."""
    return TokenizerHub(get_registry().families[family])


class ModelHub:
    """The models of one family. Configurations are the family's own class where it has one, else transformers'."""

    def __init__(self, family: ModelFamily) -> None:
        self.family = family

    def iter_cards(self) -> Iterator[Card]:
        """The cards of this family that can be used (``graft models ls`` says what is wrong with others)."""
        return (card for card in library().cards() if _is(self.family, card.model_family))

    def get_archs(self) -> set[str]:
        """The names of the architectures: the family's presets."""
        return {preset.name for preset in self.family.presets}

    def get_arch_config(self, arch: str) -> Any:
        """The configuration of an architecture. Raises :class:`UnknownNameError` with the nearest name."""
        return self._own(self._preset(arch).config())

    def maybe_get_arch_config(self, arch: str) -> Any | None:
        """As :meth:`get_arch_config`; None where there is no such architecture."""
        return self.get_arch_config(arch) if _preset_of(self.family, arch) is not None else None

    def get_model_config(self, card: str | Card) -> Any:
        """The configuration of a card: its architecture's, or its checkpoint's, with its overrides over it."""
        from graftwork.builders.model import model_config
        from graftwork.config import ModelParams

        known = _card(card)
        _check_family(known, known.model_family, self.family)
        return self._own(model_config(ModelParams(model_name=f"card:{known.name}", load_pretrained_weights=False)))

    def create_new_model(self, config: Any, *, device: Any = None, dtype: Any = None, meta: bool = False) -> Any:
        """A model with fresh weights, in evaluation mode; with ``meta`` without any, to see its shapes."""
        from graftwork.builders.model import build_of_config

        return build_of_config(
            self._theirs(config), family=self.family, device="meta" if meta else _device(device), dtype=dtype
        )

    def load_model(
        self,
        card: str | Path | Card,
        *,
        device: Any = None,
        dtype: Any = None,
        config: Any = None,
        progress: bool = True,
    ) -> PreTrainedModel:
        """The model of a card with its weights. ``config`` takes the place of the one that comes with them.

        ``progress`` shows the bars of downloads. Raises :class:`UnknownNameError` for a name that no card has.
        """
        name = _loadable(card, self.family)
        with _progress(progress):
            if config is None:
                return load_model(name, device=device, dtype=dtype)
            from graftwork.sources.resolve import locate

            return self.load_custom_model(locate(resolve(name)), config, device=device, dtype=dtype)

    def load_custom_model(
        self, path: str | Path, config: Any, *, device: Any = None, dtype: Any = None, progress: bool = True
    ) -> PreTrainedModel:
        """The model whose weights are in a folder (or that this is a file of), built as ``config`` says; there need
        not be a ``config.json``.
        """
        from graftwork.builders.model import build_of_config
        from graftwork.checkpoints.huggingface import check_read

        place = local.expanded(path)
        folder = Path(folder_of(str(place)))
        if not folder.is_dir():
            raise ModelError(f"model {path}: there is no such file or folder")
        check_read(place)
        with _progress(progress):
            return build_of_config(
                self._theirs(config), path=folder, family=self.family, device=_device(device), dtype=dtype
            )

    def _preset(self, arch: str) -> Preset:
        preset = _preset_of(self.family, arch)
        if preset is None:
            nearest = did_you_mean(arch, self.get_archs(), limit=20)
            raise UnknownNameError(f"the family {self.family.name} has no architecture {arch!r}: {nearest}")
        return preset

    def _own(self, config: PretrainedConfig) -> Any:
        if not self.family.config_class:
            return config
        module, _, name = self.family.config_class.partition(":")
        return getattr(import_module(module), name).from_transformers(config)

    def _theirs(self, config: Any) -> PretrainedConfig:
        """Transformers' view of a configuration of this family."""
        found: PretrainedConfig = config.to_transformers() if hasattr(config, "to_transformers") else config
        if not hasattr(found, "model_type"):
            kind = type(config).__name__
            raise UsageError(f"config is a {kind}: give what get_arch_config returns, or a transformers configuration")
        if self.family.model_types and found.model_type not in self.family.model_types:
            raise ModelError(f"config is of model_type {found.model_type!r}; this is the hub of {self.family.name}")
        return found


class TokenizerHub:
    """The tokenizers of one family."""

    def __init__(self, family: ModelFamily) -> None:
        self.family = family

    def iter_cards(self) -> Iterator[Card]:
        """The cards with a tokenizer of this family."""
        cards = library()
        return (card for card in cards.cards() if self._has(cards, card))

    def get_tokenizer_config(self, card: str | Card) -> TokenizerConfig:
        """How a card's tokenizer is read."""
        from graftwork.tokenizers.tokenizer import TokenizerConfig

        return TokenizerConfig(**library().tokenizer_of(_card(card)).options)

    def load_tokenizer(
        self,
        card: str | Path | Card,
        *,
        config: TokenizerConfig | Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> Tokenizer:
        """The tokenizer of a card. ``config`` takes the place of the card's ``tokenizer_config_override``."""
        from graftwork.tokenizers.tokenizer import load_tokenizer

        name = _loadable(card, self.family, of_tokenizer=True)
        with _progress(progress):
            return load_tokenizer(name, config=config, family=self.family)

    def load_custom_tokenizer(
        self, path: str | Path, config: TokenizerConfig | Mapping[str, Any] | None = None
    ) -> Tokenizer:
        """The tokenizer in a file or folder."""
        from graftwork.tokenizers.tokenizer import load_tokenizer

        return load_tokenizer(Path(path), config=config, family=self.family)

    def _has(self, cards: Library, card: Card) -> bool:
        try:
            return _is(self.family, cards.tokenizer_of(card).family)
        except UsageError:
            return False


def _spelling(name: str | Path | Card) -> str:
    """A name as models are named; a card's name means the card here, whatever else has it."""
    if isinstance(name, Card):
        return f"card:{name.name}"
    if isinstance(name, Path):
        return str(name.absolute())
    return f"card:{name}" if name in library() else name


def _loadable(card: str | Path | Card, family: ModelFamily, *, of_tokenizer: bool = False) -> str:
    """What to load. A bare name must be that of a card, and a card of this family."""
    name = _spelling(card)
    if name.startswith((".", "~")) or "/" in name:
        return name
    known = _card(name)
    _check_family(known, library().tokenizer_of(known).family if of_tokenizer else known.model_family, family)
    return name


def _card(card: str | Card) -> Card:
    return card if isinstance(card, Card) else library()[card.removeprefix("card:")]


def _check_family(card: Card, name: str | None, family: ModelFamily) -> None:
    if name is not None and not _is(family, name):
        raise ModelError(f"card {card.name!r} ({card.place}) is of the family {name}; this is the hub of {family.name}")


def _is(family: ModelFamily, name: str | None) -> bool:
    return name is not None and get_registry().families.get_or_none(name) is family


def _preset_of(family: ModelFamily, arch: str) -> Preset | None:
    names = {name.casefold(): preset for preset in family.presets for name in (preset.name, *preset.aliases)}
    return names.get(arch.casefold())


def _device(device: Any) -> str:
    """A torch device, or its name, as ``device_map`` has it."""
    return "auto" if device is None else str(device)


def _progress(shown: bool) -> AbstractContextManager[None]:
    return nullcontext() if shown else without_bars()
