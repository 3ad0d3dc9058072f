"""Precision of the arithmetic and layout of images in memory. Which one is fastest here is found out in `fastest`.

Weights, losses, probabilities and optimizer stay float32 whatever runs between them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import nn

from automl_tl.model.pooling import Activation
from automl_tl.plugin import Tokens

Precision = Literal["float32", "channels_last", "bfloat16"]
"""float32; float32 with the channels of images next to each other; bfloat16 where autocast takes it, images likewise.

For texts and tables the first two are the same.
"""


def running(precision: Precision, device: str) -> AbstractContextManager[object]:
    """A context for the forward pass; backward passes and losses belong outside."""
    if precision != "bfloat16":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def lay_out(module: nn.Module, precision: Precision) -> None:
    """Put the module's weights into memory as the precision wants them; their values stay."""
    module.to(memory_format=_layout(precision))  # type: ignore[call-overload]  # torch's stubs lack it


def laid_out(batch: Activation, precision: Precision) -> Activation:
    """Images or maps (N, C, H, W) as the precision wants them in memory; all else as it is."""
    if isinstance(batch, Tokens) or batch.ndim != 4:
        return batch
    return batch.contiguous(memory_format=_layout(precision))


def has_bfloat16(device: str) -> bool:
    """Whether the device computes in bfloat16 itself; elsewhere it would be imitated, and slow."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private: not in every version of torch
    return any(getattr(torch.cpu, question, bool)() for question in questions)


def _layout(precision: Precision) -> torch.memory_format:
    return torch.contiguous_format if precision == "float32" else torch.channels_last
