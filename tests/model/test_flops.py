"""FLOPs counted quickly are those that torch counts."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from automl_tl.host import load_host
from automl_tl.model.flops import forward_flops
from automl_tl.model.groups import example_input

SHAPES = {
    "efficientnet_lite0": (3, 64, 64),
    "mobilenet_v2": (3, 64, 64),
    "minilm_l6": (),
    "source_cnn": (3, 16, 16),
    "source_mlp": (13,),
}


@pytest.mark.parametrize("name", SHAPES)
def test_built_in_backbones(name):
    backbone = load_host().backbone(name)
    module = backbone.build(input_shape=SHAPES[name], weights=None).eval()
    activation = example_input(backbone, SHAPES[name])
    for group in backbone.layer_groups:
        with FlopCounterMode(display=False) as counter:
            expected = module.get_submodule(group)(activation)
        got, flops = forward_flops(module.get_submodule(group), activation)
        # torch's counter does not know the fused attention of CPUs: 32 tokens by 32 by twice 384 features.
        unseen = 2 * 32 * 32 * 2 * 384 if group.startswith("layer") and name == "minilm_l6" else 0
        assert flops == counter.get_total_flops() + unseen
        activation = expected
        assert type(got) is type(expected)


class Products(nn.Module):
    def forward(self, x):
        return (x @ x.transpose(1, 2)).bmm(x).matmul(torch.ones(4, 3))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv1d(3, 5, 3, stride=2, groups=1), (2, 3, 9)),
        (nn.Conv3d(2, 4, 3, padding=1), (1, 2, 5, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5)),
        (Products(), (2, 5, 4)),
        (nn.MultiheadAttention(8, 2, batch_first=True), None),
        (nn.Bilinear(3, 4, 5), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_layers(module, shape):
    class Group(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = module

        def forward(self, x):
            if isinstance(module, nn.MultiheadAttention):
                return module(x, x, x)[0]
            return module(x[:, :3], x[:, 3:]) if isinstance(module, nn.Bilinear) else module(x)

    inputs = torch.randn(shape or ((2, 5, 8) if isinstance(module, nn.MultiheadAttention) else (6, 7)))
    with FlopCounterMode(display=False) as counter:
        Group()(inputs)
    assert forward_flops(Group(), inputs)[1] == counter.get_total_flops()


def test_what_multiplies_nothing_takes_nothing():
    assert forward_flops(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), torch.ones(1, 2, 4, 4))[1] == 0
