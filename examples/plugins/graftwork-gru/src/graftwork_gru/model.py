"""A recurrent language model.

B sequences in the batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from graftwork import BaseModel


class Gru(BaseModel):
    """Gated recurrent units, each with a linear mixer on top.

    It reads from left to right and has no attention, so padding on the right cannot reach what stands before it:
    ``attention_mask`` is not needed.
    """

    model_type = "gru"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.embed = nn.Embedding(config.vocab_size, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, config.vocab_size, bias=False)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Logits (B, T, V) of tokens (B, T)."""
        hidden = self.embed(input_ids)  # (B, T, D)
        for layer in self.layers:
            hidden = layer(hidden)
        logits: torch.Tensor = self.head(self.norm(hidden))
        return logits


class Layer(nn.Module):
    """One recurrent layer with a residual path."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.recur = nn.GRU(width, width, batch_first=True)
        self.mix = nn.Linear(width, width, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, T, D) to (B, T, D)."""
        states, _ = self.recur(self.norm(hidden))
        mixed: torch.Tensor = hidden + self.mix(states)
        return mixed
