"""4-bit quantization on a CPU, a piece at a time.

bitsandbytes 0.50 has no kernel of its own for it on CPUs: its general one, in plain PyTorch, makes half a dozen float32
copies of the whole weight, which is 24 bytes for each 2 of bfloat16. Blocks are quantized independently of one another,
so pieces of whole blocks give the same bytes.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import bitsandbytes  # noqa: F401  # registers the operator
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

OPERATOR = "bitsandbytes::quantize_4bit"
PIECE = 1 << 18
"""Values quantized at once: a multiple of every size of block."""


@cache
def use_pieces() -> None:
    """From here on this process quantizes in pieces on CPUs; the results are those of bitsandbytes' own kernel."""
    whole = torch.library.get_kernel(OPERATOR, "CPU")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def plain(values: torch.Tensor, blocksize: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
        packed, absmax = whole.call_boxed(keys, values, blocksize, kind, torch.uint8)
        return packed, absmax

    def kernel(
        values: torch.Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return in_pieces(plain, values, blocksize, quant_type, quant_storage)

    torch.library.register_kernel(OPERATOR, "cpu", kernel)


def in_pieces(
    plain: Callable[[torch.Tensor, int, str], tuple[torch.Tensor, torch.Tensor]],
    values: torch.Tensor,
    blocksize: int,
    kind: str,
    storage: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The packed values [N / 2 bytes, 1] of type ``storage`` and each block's largest value [N / blocksize]."""
    parts = [plain(piece, blocksize, kind) for piece in values.reshape(-1).split(PIECE)]
    packed = torch.cat([part[0].reshape(-1) for part in parts])
    return packed.view(storage).unsqueeze(1), torch.cat([part[1] for part in parts])
