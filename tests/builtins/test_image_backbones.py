from __future__ import annotations

import hashlib
from importlib import import_module

import pytest
import torch
from torch import nn

LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
PRETRAINED = (*LITE, "mobilenet_v2")


def backbone_of(name):
    (backbone,) = import_module(f"automl_tl_builtins.backbones.{name}").automl_tl_backbones()
    return backbone


@pytest.fixture(scope="module", params=PRETRAINED)
def pretrained(request):
    backbone = backbone_of(request.param)
    for library in backbone.requires:
        pytest.importorskip(library)
    weights = backbone.weights.find()
    if weights is None:
        pytest.skip(f"the weights of {backbone.name} are not installed")
    return backbone, backbone.build(input_shape=(3, 224, 224), weights=weights).eval()


def test_children_are_the_layer_groups_and_hold_every_parameter(pretrained):
    backbone, network = pretrained
    assert tuple(name for name, _ in network.named_children()) == backbone.layer_groups
    assert len(backbone.layer_groups) == 9
    held = [parameter for name in backbone.layer_groups for parameter in network.get_submodule(name).parameters()]
    assert {id(p) for p in held} == {id(p) for p in network.parameters()}
    assert len(held) == len(set(held))


def test_weights_are_the_published_ones(pretrained):
    backbone, _ = pretrained
    assert hashlib.sha256(backbone.weights.find().read_bytes()).hexdigest() == backbone.weights.sha256


@pytest.mark.parametrize("size", [64, 96, 128])
def test_features_are_finite_at_small_sizes(pretrained, size):
    _, network = pretrained
    torch.manual_seed(0)
    activation = torch.randn(2, 3, size, size)
    with torch.no_grad():
        whole = network(activation)
        for group in network.children():
            activation = group(activation)
            assert torch.isfinite(activation).all()
            assert activation.std() > 1e-3
    assert whole.shape == (2, 1280, size // 32, size // 32)
    assert torch.equal(whole, activation)


def test_stride_16_has_a_tap_at_either_width(pretrained):
    backbone, network = pretrained
    outputs = {}
    activation = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        for name in backbone.layer_groups:
            activation = network.get_submodule(name)(activation)
            outputs[name] = activation.shape
    assert outputs["stage4"][2] == outputs["stage5"][2] == 4
    assert outputs["stage4"][1] < outputs["stage5"][1]


def test_gradients_reach_every_parameter(pretrained):
    _, network = pretrained
    network(torch.randn(1, 3, 64, 64)).mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    network.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", LITE)
def test_efficientnet_lite_computes_what_the_library_computes(name):
    library = pytest.importorskip("efficientnet_lite_pytorch")
    backbone = backbone_of(name)
    weights = backbone.weights.find()
    if weights is None:
        pytest.skip(f"the weights of {name} are not installed")
    reference = library.EfficientNet.from_name(name.replace("_", "-")).eval()
    reference.load_state_dict(torch.load(weights, weights_only=True), strict=True)
    size = backbone.input.size
    assert reference.input_image_size == size
    network = backbone.build(input_shape=(3, size, size), weights=weights).eval()
    torch.manual_seed(0)
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        assert torch.equal(network(images), reference.extract_features(images))


def test_efficientnet_lite_input_is_centered_like_the_library_says():
    image = backbone_of("efficientnet_lite0").input
    assert (200 / 255 - image.mean[0]) / image.std[0] == pytest.approx((200 - 127) / 128)


def test_mobilenet_v2_with_its_classifier_knows_a_palace():
    datasets = pytest.importorskip("sklearn.datasets")
    backbone = backbone_of("mobilenet_v2")
    weights = backbone.weights.find()
    if weights is None:
        pytest.skip("the weights of mobilenet_v2 are not installed")
    network = backbone.build(input_shape=(3, 224, 224), weights=weights).eval()
    stored = torch.load(weights, weights_only=True)
    photo = datasets.load_sample_image("china.jpg")[:, 106:533]  # the square in the middle
    image = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None] / 255
    image = nn.functional.interpolate(image, size=(224, 224), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (backbone.input.mean, backbone.input.std))
    with torch.no_grad():
        features = network((image - mean) / std).mean((2, 3))
        logits = nn.functional.linear(features, stored["classifier.1.weight"], stored["classifier.1.bias"])
    assert logits.argmax() == 698  # ImageNet's "palace"


@pytest.mark.parametrize("name", [*PRETRAINED, "source_cnn"])
def test_random_weights_are_reproducible_and_read_no_file(name, monkeypatch):
    backbone = backbone_of(name)
    for library in backbone.requires:
        pytest.importorskip(library)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("a file was read"))
    networks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        networks.append(backbone.build(input_shape=(3, 64, 64), weights=None).eval())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        first, same, other = (network(images) for network in networks)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert 0.1 < first.std() < 10  # the signal survives frozen, untrained BatchNorm statistics


@pytest.mark.parametrize("name", [*PRETRAINED, "source_cnn"])
def test_state_round_trips_between_builds_for_other_sizes(name):
    backbone = backbone_of(name)
    for library in backbone.requires:
        pytest.importorskip(library)
    network = backbone.build(input_shape=(3, 64, 64), weights=None).eval()
    other = backbone.build(input_shape=(3, 96, 96), weights=None).eval()
    assert all(key.split(".")[0] in backbone.layer_groups for key in network.state_dict())
    other.load_state_dict(network.state_dict(), strict=True)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(images), other(images))
