"""Which plugins a run searches over."""

from dataclasses import replace

import pytest

from automl_tl.config import load_config
from automl_tl.errors import PluginError
from automl_tl.host import PluginSources, load_host
from automl_tl.plugin import Backbone, ImageInput, TabularInput, Weights
from automl_tl.search.selection import as_begun, resolve_names, select_plugins

MISSING = Weights(find=lambda: None, install="pip install zoo", origin="a zoo", license="MIT", sha256="00")


def build(*, input_shape, weights):
    raise AssertionError("selecting builds nothing")


def backbone(name, **fields):
    known = {"description": "", "input": ImageInput(size=32), "layer_groups": ("only",), "build": build}
    return Backbone(name=name, **(known | fields))


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A host without installed plugins: one backbone with weights, one whose weights are missing, two without any."""
    monkeypatch.setattr("automl_tl.host.entry_points", lambda group: [])
    there = replace(MISSING, find=lambda: tmp_path)
    items = (
        backbone("ready", weights=there),
        backbone("bare", weights=MISSING),
        backbone("scratch"),
        backbone("rows", input=TabularInput()),
    )
    return lambda *keep: load_host(PluginSources(objects=tuple(i for i in items if not keep or i.name in keep)))


def config(**values):
    return load_config({"data": "x.csv", **values})


def test_auto_takes_what_fits_and_can_be_used(small):
    chosen = select_plugins(config(), small(), "image")
    assert chosen.backbones == ("ready",)
    assert chosen.notes == ("bare: weights not installed: pip install zoo",)


def test_auto_takes_all_heads_and_strategies(host):
    chosen = select_plugins(config(), host, "tabular")
    assert (chosen.heads, chosen.strategies) == (tuple(host.heads), tuple(host.strategies))


def test_names_are_taken_as_they_are(host):
    chosen = select_plugins(
        config(backbones=["mobilenet_v2", "source_cnn"], heads="cosine", strategies=["last_k", "lp_ft"]), host, "image"
    )
    assert chosen.backbones == ("mobilenet_v2", "source_cnn")
    assert (chosen.heads, chosen.strategies, chosen.notes) == (("cosine",), ("last_k", "lp_ft"), ())


def test_without_weights_auto_starts_from_random_ones_and_says_so(small):
    chosen = select_plugins(config(), small("bare", "scratch"), "image")
    assert chosen.backbones == ("scratch",)
    assert chosen.notes == (
        "bare: weights not installed: pip install zoo",
        "no pretrained image backbone is installed: starting from random weights",
    )


def test_tables_start_from_random_weights_as_a_matter_of_course(small):
    chosen = select_plugins(config(), small(), "tabular")
    assert (chosen.backbones, chosen.notes) == (("rows",), ())


def test_a_source_task_brings_its_backbone(host):
    source = {"data": "sklearn:digits", "backbone": "source_cnn"}
    assert select_plugins(config(source=source), host, "image").backbones == ("source_cnn",)
    named = config(source=source, backbones=["mobilenet_v2", "source_cnn"])
    assert select_plugins(named, host, "image").backbones == ("mobilenet_v2", "source_cnn")


@pytest.mark.parametrize(
    ("values", "modality", "message"),
    [
        ({"backbones": "bare"}, "image", r"backbone 'bare': weights not installed: pip install zoo"),
        (
            {"backbones": "rows"},
            "image",
            r"'rows' reads tabular inputs, but the task's modality is image; ",
        ),
        ({"source": {"data": "a", "backbone": "rows"}}, "image", r"'rows' reads tabular inputs"),
        ({}, "text", r"no backbone reads text inputs here\. Install a plugin that provides one\."),
    ],
    ids=["weights missing", "wrong modality", "source of the wrong modality", "none at all"],
)
def test_what_cannot_be_used(small, values, modality, message):
    with pytest.raises(PluginError, match=message):
        select_plugins(config(**values), small(), modality)


def test_when_nothing_can_be_used_all_reasons_are_given(small):
    with pytest.raises(PluginError, match=r"no backbone reads image inputs here\. bare: weights not installed"):
        select_plugins(config(), small("bare"), "image")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbones": "mobilenet_v3"}, r"no backbone named 'mobilenet_v3'.*Did you mean 'mobilenet_v2'\?"),
        ({"heads": ["linear", "liner"]}, r"no head named 'liner'.*Did you mean 'linear'\?"),
        ({"strategies": "last_kk"}, r"no freezing strategy named 'last_kk'.*Did you mean 'last_k'\?"),
        ({"source": {"data": "a", "backbone": "source_cn"}}, r"no backbone named 'source_cn'.*'source_cnn'\?"),
    ],
)
def test_unknown_names_are_found_before_any_work(host, values, message):
    with pytest.raises(PluginError, match=message):
        resolve_names(config(**values), host)


def test_known_names_pass(host):
    resolve_names(config(backbones="auto", heads="linear", strategies=["last_k"]), host)


def test_a_run_goes_on_with_what_it_began_with(small):
    begun = select_plugins(config(), small("ready", "rows"), "image").names()
    later = select_plugins(as_begun(config(), begun), small(), "image")
    assert later.names() == begun
    assert as_begun(config(), None) == config()
