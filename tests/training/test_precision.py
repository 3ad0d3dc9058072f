from __future__ import annotations

import pytest
import torch
from torch import nn

from automl_tl.plugin import Tokens
from automl_tl.training.precision import has_bfloat16, laid_out, lay_out, running


@pytest.mark.parametrize(("precision", "expected"), [
    ("float32", torch.float32),
    ("channels_last", torch.float32),
    ("bfloat16", torch.bfloat16),
])  # fmt: skip
def test_layers_run_in_the_precision(precision, expected):
    layer = nn.Linear(3, 2)
    with running(precision, "cpu"):
        assert layer(torch.ones(1, 3)).dtype == expected
    assert layer(torch.ones(1, 3)).dtype == layer.weight.dtype == torch.float32


def test_weights_and_maps_are_laid_out_alike_and_keep_their_values():
    layer, maps = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 5, 5)
    weight = layer.weight.detach().clone()
    for precision, channels_last in (("channels_last", True), ("float32", False), ("bfloat16", True)):
        lay_out(layer, precision)
        batch = laid_out(maps, precision)
        for tensor, original in ((layer.weight, weight), (batch, maps)):
            assert tensor.is_contiguous(memory_format=torch.channels_last) == channels_last
            assert tensor.is_contiguous() != channels_last
            assert torch.equal(tensor, original)


def test_what_has_no_channels_stays_as_it_is():
    features, tokens = torch.ones(2, 3), Tokens(torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool))
    assert laid_out(features, "channels_last") is features
    assert laid_out(tokens, "bfloat16") is tokens


def test_bfloat16_is_for_processors_that_have_it(monkeypatch):
    for answers in ((False, False), (False, True), (True, False)):
        for name, answer in zip(("_is_avx512_bf16_supported", "_is_amx_tile_supported"), answers, strict=True):
            monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
        assert has_bfloat16("cpu") == any(answers)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert not has_bfloat16("cpu")  # a torch that cannot say
