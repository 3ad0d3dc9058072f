"""The convolution of the image backbones is PyTorch's own, however small the map."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from automl_tl_builtins.networks.padding import PaddedConv2d


@settings(deadline=None)  # the first convolution of a process takes long
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.sampled_from((1, 3, 5)),
    stride=st.sampled_from((1, 2)),
    depthwise=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_padded_convolution_says_and_learns_what_pytorchs_own_does(size, kernel, stride, depthwise, seed):
    torch.manual_seed(seed)
    groups = 4 if depthwise else 1
    ours = PaddedConv2d(4, 8, kernel, stride=stride, groups=groups)
    theirs = nn.Conv2d(4, 8, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, *size)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(given) for layer, given in zip((ours, theirs), inputs, strict=True)]
    torch.testing.assert_close(*outputs)
    wanted = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(wanted)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), outputs[1])


@pytest.mark.parametrize("size", [32, 33, 64, 97])
@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"])
def test_what_was_made_quicker_in_the_librarys_network_changes_nothing(name, size):
    library = pytest.importorskip("efficientnet_lite_pytorch")
    from automl_tl_builtins.networks.efficientnet_lite import _quicken

    torch.manual_seed(0)
    whole = library.EfficientNet.from_name(name).eval()
    images = torch.randn(2, 3, size, size)
    names = [key for key, _ in whole.named_parameters()]
    with torch.no_grad():
        before = whole.extract_features(images)
        _quicken(whole)
        torch.testing.assert_close(whole.extract_features(images), before)
    assert [key for key, _ in whole.named_parameters()] == names
    assert any(isinstance(module, PaddedConv2d) for module in whole.modules())
