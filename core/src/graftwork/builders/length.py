"""``model_max_length`` against what the model can do."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from graftwork.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger("graftwork.model")


def check_length(asked: int | None, config: PretrainedConfig) -> None:
    """Raises :class:`ModelError` for more positions than a table of learned positions holds.

    Rotary positions have no end, so there a greater length is only said.
    """
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if asked is None or not isinstance(limit, int) or asked <= limit:
        return
    said = f"model.model_max_length {asked} is more than the model's max_position_embeddings {limit}"
    if positions(config) is not None:
        raise ModelError(f"{said}: its positions are a table of that size. Use at most {limit}")
    logger.warning(
        "%s: it was not trained on positions beyond, so expect worse text there (model_kwargs can set rope_parameters)",
        said,
    )


def positions(config: PretrainedConfig) -> int | None:
    """The size of the model's table of learned positions; None where its positions have no end."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and getattr(text, "rope_parameters", None) is None else None
