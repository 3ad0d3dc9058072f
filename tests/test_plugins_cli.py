"""`automl-tl plugins`, on plugins of its own: what is installed here does not matter."""

import json

import pytest
from typer.testing import CliRunner

from automl_tl.errors import PluginError
from automl_tl.plugins_cli import plugins_app

PLUGINS = """
from automl_tl.plugin import Backbone, FreezingStrategy, GroupPlan, Head, TabularInput, TransferPlan, Weights, hookimpl

def build_head(trial, *, in_features, n_outputs):
    from torch import nn
    trial.suggest_int("width", 8, 64, log=True)
    return nn.Linear(in_features, n_outputs)

def build_backbone(*, input_shape, weights):
    from collections import OrderedDict
    from torch import nn
    return nn.Sequential(OrderedDict(stem=nn.Linear(*input_shape, 4), top=nn.Linear(4, 2)))

def plan(trial, groups, context):
    tuned = trial.suggest_categorical("tuned", [group.name for group in groups])
    return TransferPlan(tuple(GroupPlan(group=g.name, action="tune" if g.name == tuned else "freeze") for g in groups))

def plan_badly(trial, groups, context):
    return TransferPlan(tuple(GroupPlan(group=g.name, action="tune", lr_scale=0.0) for g in groups))

@hookimpl
def automl_tl_heads():
    return [Head(name="thin", description="a thin head", build=build_head)]

@hookimpl
def automl_tl_backbones():
    fields = dict(description="two layers", input=TabularInput(), layer_groups=("stem", "top"), build=build_backbone)
    weights = Weights(find=lambda: None, install="pip install zoo", origin="a zoo", license="MIT", sha256="00")
    yield Backbone(name="ready", **fields)
    yield Backbone(name="bare", weights=weights, **fields)
    yield Backbone(name="needy", requires=("no_such_library",), install="pip install such", **fields)

@hookimpl
def automl_tl_freezing_strategies():
    yield FreezingStrategy(name="one_group", description="tunes one group", plan=plan)
    yield FreezingStrategy(name="standstill", description="learns nothing", plan=plan_badly)
"""


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.setattr("automl_tl.host.entry_points", lambda group: [])
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "own.py").write_text(PLUGINS)
    (tmp_path / "cracked.py").write_text("import no_such_library")

    def run(*arguments, exit_code=0):
        result = CliRunner().invoke(plugins_app, [*arguments, "--plugins-dir", str(tmp_path)])
        if isinstance(result.exception, PluginError):
            raise result.exception
        assert result.exit_code == exit_code, result.output
        return result.output

    return run


def rows(text):
    return {line.split()[0]: line for line in text.splitlines() if line.strip()}


def test_list_shows_every_item_and_what_is_missing(invoke):
    table = rows(invoke("list"))
    assert "freezing strategy" in table["one_group"]
    assert table["thin"].rstrip().endswith("ok")
    assert "weights not installed: pip install zoo" in table["bare"]
    assert "needs no_such_library: pip install such" in table["needy"]
    assert "ModuleNotFoundError: No module named 'no_such_library'" in table["cracked"]


def test_list_can_be_read_by_programs(invoke):
    answer = json.loads(invoke("list", "--json"))
    assert answer["hook_api"] == 1
    cracked, own = answer["plugins"]
    assert (cracked["name"], cracked["provides"]) == ("cracked", [])
    assert "no_such_library" in cracked["error"]
    assert (own["name"], own["error"], own["distribution"]) == ("own", None, None)
    assert own["version"].startswith("sha256:")
    assert own["provides"][0] == {"kind": "backbone", "name": "ready", "description": "two layers", "status": "ok"}
    assert [item["name"] for item in own["provides"] if item["kind"] == "strategy"] == ["one_group", "standstill"]


def test_list_can_be_restricted_to_a_kind(invoke):
    answer = json.loads(invoke("list", "--json", "--kind", "head"))
    assert [item["name"] for plugin in answer["plugins"] for item in plugin["provides"]] == ["thin"]


def test_show_a_backbone(invoke):
    [facts] = json.loads(invoke("show", "bare", "--json"))
    assert [group["name"] for group in facts["layer_groups"]] == ["stem", "top"]
    assert facts["layer_groups"][1]["parameters"] == 4 * 2 + 2
    assert sum(group["flop_share"] for group in facts["layer_groups"]) == pytest.approx(1)
    assert facts["weights"] == {
        "origin": "a zoo",
        "license": "MIT",
        "sha256": "00",
        "path": None,
        "install": "pip install zoo",
    }
    text = invoke("show", "bare")
    assert "license: MIT" in text
    assert "stem" in text


def test_show_a_backbone_that_cannot_be_built_here(invoke):
    [facts] = json.loads(invoke("show", "needy", "--json"))
    assert facts["status"] == "needs no_such_library: pip install such"
    assert facts["layer_groups"][0] == {"name": "stem", "parameters": None, "flop_share": None}
    assert "?" in rows(invoke("show", "needy"))["stem"]


def test_show_what_the_search_may_choose(invoke):
    [facts] = json.loads(invoke("show", "thin", "--json"))
    assert facts["parameters"] == {"width": {"low": 8, "high": 64, "log": True}}
    assert "8 to 64, log scale" in invoke("show", "thin")
    [facts] = json.loads(invoke("show", "one_group", "--json"))
    assert len(facts["parameters"]["tuned"]["choices"]) == 6
    assert "Nothing to choose." in invoke("show", "standstill")


def test_show_what_is_not_there(invoke):
    with pytest.raises(PluginError, match=r"named 'thim'.*Did you mean 'thin'\?"):
        invoke("show", "thim")


def test_check_passes(invoke):
    assert "one_group breaks none of 9 rules" in invoke("check", "one_group")
    assert "skipped: weights not installed: pip install zoo" in invoke("check", "bare")


def test_check_fails_with_the_reason(invoke, tmp_path):
    text = invoke("check", "standstill", exit_code=1)
    assert "broken: standstill: lr_scale must be finite and > 0" in text
    assert "standstill breaks 1 of 9 rules" in text
    for everything in ("own", str(tmp_path / "own.py")):
        assert "breaks 1 of" in invoke("check", everything, exit_code=1)


def test_check_what_cannot_be_loaded(invoke):
    with pytest.raises(PluginError, match=r"plugin cracked .*: ModuleNotFoundError"):
        invoke("check", "cracked")
    with pytest.raises(PluginError, match="no plugin named 'absent'"):
        invoke("check", "absent")


def test_check_a_file_that_is_not_there(invoke):
    with pytest.raises(PluginError, match=r"absent\.py does not exist"):
        invoke("check", "absent.py")
