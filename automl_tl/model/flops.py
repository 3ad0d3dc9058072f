"""FLOPs of a forward pass: quickly, by what passes through the functions that networks are made of.

torch has a counter of its own, which sees more; but its first use imports a compiler and a computer algebra system, for
longer than a first probe takes. It is asked only where the quick one has seen nothing although there is something.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from automl_tl.model.pooling import Activation

CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
PRODUCTS = (torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm)


def forward_flops(group: nn.Module, inputs: Activation) -> tuple[Activation, int]:
    """The output of a layer group, and the floating-point operations it took."""
    with FlopCounter() as counter:
        output: Activation = group(inputs)
    if counter.total or not _has_products(group):
        return output, counter.total
    with FlopCounterMode(display=False) as thorough:
        output = group(inputs)
    return output, int(thorough.get_total_flops())


class FlopCounter(TorchFunctionMode):
    """Counts a multiplication and an addition as two, as torch does."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and count it if it is one of those."""
        named = kwargs or {}
        out = func(*args, **named)
        if func is functional.linear:
            self.total += 2 * out.numel() * _of(args, named, 0, "input").shape[-1]
        elif func in CONVOLUTIONS:
            self.total += 2 * out.numel() * math.prod(_of(args, named, 1, "weight").shape[1:])
        elif func in TRANSPOSED:
            weight = _of(args, named, 1, "weight")
            self.total += 2 * _of(args, named, 0, "input").numel() * math.prod(weight.shape[1:])
        elif func in PRODUCTS:
            self.total += 2 * out.numel() * args[0].shape[-1]
        elif func is functional.scaled_dot_product_attention:
            query, key, value = (_of(args, named, i, name) for i, name in enumerate(("query", "key", "value")))
            pairs = query.numel() // query.shape[-1] * key.shape[-2]
            self.total += 2 * pairs * (query.shape[-1] + value.shape[-1])
        return out


def _of(args: Any, kwargs: Any, index: int, name: str) -> Tensor:
    found: Tensor = args[index] if len(args) > index else kwargs[name]
    return found


def _has_products(group: nn.Module) -> bool:
    """Whether a group has matrices that something is multiplied by."""
    return any(
        parameter.ndim > 1
        for module in group.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    )
