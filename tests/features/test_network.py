from __future__ import annotations

import functools
import os
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

from automl_tl.features import network as module
from automl_tl.features.frozen import store_outputs
from automl_tl.features.network import CLEAN, code_version, known_groups, weights_digest
from automl_tl.host import PluginSources, load_host
from automl_tl.model.pooling import pool
from automl_tl.plugin import ImageInput, Tokens

SUBJECTS = pytest.mark.parametrize("name", ["images", "photographs", "reviews", "table"])


def outputs(subject):
    """Return what every group gives for all samples."""
    activation, found = subject.rows.batch(np.arange(len(subject.rows)), "cpu"), []
    with torch.no_grad():
        for group in subject.groups:
            activation = group(activation)
            found.append(activation)
    return found


@SUBJECTS
@pytest.mark.parametrize("pooling", ["mean", "mean_std"])
def test_columns_are_where_a_pass_puts_a_tap(request, store, name, pooling):
    subject = request.getfixturevalue(name)
    network = subject.network(store)
    assert store_outputs(network, subject.samples, None, subject.source())
    values = network.pooled("float16").open(subject.digests)
    assert values.row_shape == (network.width(),)
    for tap, output in enumerate(outputs(subject), start=1):
        columns = network.columns(tap, pooling)
        stored = torch.from_numpy(values.gather(np.arange(len(values)), columns)).float()
        torch.testing.assert_close(stored, pool(output, pooling), atol=3e-3, rtol=3e-3)


@SUBJECTS
def test_the_size_of_an_output_is_known_before_it_is_computed(request, store, name):
    subject = request.getfixturevalue(name)
    for cut, output in enumerate(outputs(subject), start=1):
        tokens = isinstance(output, Tokens)
        expected = subject.network(store).values_at(cut, 7.5 if tokens else 0.0)
        assert expected == (7.5 * output.values.shape[-1] if tokens else output[0].numel())


def test_columns_of_all_taps_lie_side_by_side(images, store):
    network = images.network(store)
    ends = [network.columns(tap, "mean_std") for tap in range(1, 5)]
    assert [(c.start, c.stop) for c in ends] == [(0, 64), (64, 192), (192, 448), (448, 704)]
    assert network.width() == 704
    assert network.columns(3, "mean") == slice(192, 320)


def test_a_pass_saves_what_it_takes_to_get_there(images, store):
    network = images.network(store, seconds_per_row=2.0)
    assert network.seconds_until(None) == pytest.approx(2.0)
    assert network.seconds_until(4) == pytest.approx(2.0)
    assert 0 < network.seconds_until(1) < network.seconds_until(2) < 2.0


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ({}, True),
        ({"seconds_per_row": 1.0}, True),  # of no account for what comes out
        ({"weights": "other"}, False),
        ({"inputs": "image-64"}, False),
        ({"backbone": "other"}, False),
        ({"compute": "bfloat16"}, False),
    ],
)
def test_another_network_has_other_entries(images, store, change, shared):
    one, other = images.network(store), images.network(store, **change)
    for cut in (None, 1, 4):
        assert (one.entry(cut, "float16") == other.entry(cut, "float16")) is shared


def test_each_cut_view_and_type_has_an_entry(images, store):
    network = images.network(store)
    entries = {
        network.entry(cut, dtype, view).directory
        for cut in (None, 1, 2)
        for dtype in ("float16", "float32")
        for view in (CLEAN, "light-1", "light-2")
    }
    assert len(entries) == 18
    assert network.entry(None, "float16") == network.pooled("float16")
    assert network.entry(2, "float16") == network.activations(2, "float16")
    assert network.pooled("float16").key.kind == "pooled"
    assert network.activations(2, "float16").key.kind == "activations"


@pytest.fixture
def digest(backbones, tmp_path):
    """Return a function that digests the small network, changed in one way or other."""
    path = tmp_path / "weights"
    path.write_bytes(b"some weights")

    def call(*, content=None, change=None, **settings):
        if content is not None:
            path.write_bytes(content)
            os.utime(path, ns=(1, len(content)))
        backbone = replace(backbones["source_cnn"], **(change or {}))
        facts = {"version": "1", "input_shape": (3, 16, 16), "weights": path, **settings}
        return weights_digest(backbone, **facts)

    return call


def test_a_network_is_found_again(digest, tmp_path, backbones):
    copy = tmp_path / "copy"
    copy.write_bytes(b"some weights")
    assert digest() == digest() == digest(weights=copy)  # the bytes count, wherever they lie


@pytest.mark.parametrize(
    "change",
    [
        {"content": b"other weights"},
        {"content": b"same length."},
        {"version": "2"},
        {"input_shape": (3, 32, 32)},
        {"weights": None},
        {"change": {"name": "renamed"}},
        {"change": {"layer_groups": ("conv1", "conv2")}},
        {"change": {"input": ImageInput(size=64, mean=(0.1, 0.2, 0.3))}},  # pixels are kept before they are normalized
        {"change": {"input": ImageInput(size=64, std=(0.1, 0.2, 0.3))}},
    ],
)
def test_whatever_changes_the_outputs_changes_the_digest(digest, change):
    before = digest()
    assert digest(**change) != before


def test_random_weights_are_known_by_their_seed_and_the_version_that_draws_them(digest, monkeypatch):
    first = digest(weights=None, seed=0)
    assert digest(weights=None, seed=0) == first != digest(weights=None, seed=1)
    monkeypatch.setattr(module.torch, "__version__", "99.0")
    assert digest(weights=None, seed=0) != first


PLUGIN = """
from torch import nn
from automl_tl.plugin import Backbone, TabularInput, hookimpl

class Layer(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs).{activation}()

def build(*, input_shape, weights):
    return nn.Sequential(Layer(input_shape[0], 4))

@hookimpl
def automl_tl_backbones():
    yield BACKBONE

BACKBONE = Backbone(name="small", description="", input=TabularInput(), layer_groups=("0",), build=build)
"""


def backbone_of(path):
    """Import a file as a script does that passes a backbone in Python."""
    space = {"__name__": path.stem}
    exec(compile(path.read_text(), str(path), "exec"), space)
    return space["BACKBONE"]


@pytest.mark.parametrize("as_plugin", [True, False])
def test_code_is_known_by_all_that_stands_in_its_file(tmp_path, as_plugin):
    """What `build` puts together is defined elsewhere in the file."""
    path = tmp_path / "small.py"

    def version(activation):
        path.write_text(PLUGIN.format(activation=activation))
        backbone = backbone_of(path)
        sources = PluginSources(dirs=(tmp_path,)) if as_plugin else PluginSources(objects=(backbone,))
        return code_version(load_host(sources), backbone)

    assert version("relu") == version("relu") != version("tanh")


def test_code_of_a_distribution_is_known_by_its_version(backbones):
    assert code_version(load_host(), backbones["source_cnn"]).startswith("automl-tl ")


def test_code_that_is_installed_to_be_edited_is_known_by_its_sources(backbones, tmp_path, monkeypatch):
    package = types.ModuleType("automl_tl_builtins")
    package.__file__ = str(tmp_path / "__init__.py")
    monkeypatch.setitem(sys.modules, "automl_tl_builtins", package)
    monkeypatch.setattr(module, "_is_edited", lambda distribution: distribution == "automl-tl")
    (tmp_path / "__init__.py").write_text("")

    def version(layers):
        (tmp_path / "layers.py").write_text(layers)
        return code_version(load_host(), backbones["source_cnn"])

    assert version("a = 1") == version("a = 1") != version("a = 2")


def test_code_that_cannot_be_read_is_never_taken_for_the_same(backbones):
    partial = functools.partial(backbones["source_mlp"].build)
    typed = {"__name__": "__main__"}
    exec("def build(*, input_shape, weights): ...", typed)
    for build in (partial, typed["build"]):
        backbone = replace(backbones["source_mlp"], name="mine", build=build)
        host = load_host(PluginSources(objects=(backbone,)))
        assert code_version(host, backbone) != code_version(host, backbone)


def test_what_a_function_closes_over_is_part_of_it(backbones):
    def make(width):
        def build(*, input_shape, weights):
            return width

        return replace(backbones["source_mlp"], name="mine", build=build)

    versions = [code_version(load_host(PluginSources(objects=(b,))), b) for b in map(make, (1, 1, 2))]
    assert versions[0] == versions[1] != versions[2]


def test_facts_about_layer_groups_are_remembered(backbones, images, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOML_TL_CACHE", str(tmp_path))
    host, cnn = load_host(), backbones["source_cnn"]
    assert known_groups(host, cnn, (3, 16, 16)) == images.facts
    with monkeypatch.context() as patch:
        patch.setattr(module, "describe_groups", lambda *arguments: pytest.fail("measured again"))
        assert known_groups(host, cnn, (3, 16, 16)) == images.facts
    assert known_groups(host, cnn, (3, 32, 32)) != images.facts
    for path in tmp_path.rglob("*.json"):
        path.write_text("{half")
    assert known_groups(host, cnn, (3, 16, 16)) == images.facts
