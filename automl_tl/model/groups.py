"""Facts about a backbone's layer groups that strategies and reports want: parameters and share of the work."""

from __future__ import annotations

import torch
from torch import nn

from automl_tl.model.flops import forward_flops
from automl_tl.model.pooling import Activation
from automl_tl.plugin import Backbone, LayerGroup, TextInput, Tokens

SKETCH_TOKENS = 32  # length of the text whose cost is measured


def example_input(backbone: Backbone, input_shape: tuple[int, ...], n: int = 1) -> Activation:
    """A batch of `n` blank samples that the backbone accepts."""
    if isinstance(backbone.input, TextInput):
        ones = torch.ones(n, SKETCH_TOKENS, dtype=torch.long)
        return Tokens(ones, ones.bool())
    return torch.zeros(n, *input_shape)


def describe_groups(backbone: Backbone, input_shape: tuple[int, ...]) -> tuple[LayerGroup, ...]:
    """Build the backbone with random weights and measure each layer group's parameters and forward FLOPs."""
    with torch.random.fork_rng(devices=[]):
        module = backbone.build(input_shape=input_shape, weights=None).eval()
    activation, flops, outputs = example_input(backbone, input_shape), [], []
    for name in backbone.layer_groups:
        # With gradients on: the fused inference kernel of transformer layers is invisible to the counter.
        activation, total_flops = forward_flops(module.get_submodule(name), activation)
        flops.append(total_flops)
        outputs.append(tuple((activation.values if isinstance(activation, Tokens) else activation).shape[1:]))
    total = sum(flops) or 1
    return tuple(
        LayerGroup(
            name=name,
            parameters=count_parameters(module.get_submodule(name)),
            flop_share=share / total,
            output=output,
        )
        for name, share, output in zip(backbone.layer_groups, flops, outputs, strict=True)
    )


def count_parameters(module: nn.Module, *, trainable: bool = False) -> int:
    """Number of values in the module's parameters, or of those that train."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)
