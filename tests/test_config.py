from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from automl_tl.config import DEFAULT_SECONDS, Range, RunConfig, load_config
from automl_tl.errors import ConfigError


def write(folder, text):
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def mistakes(values, *overrides):
    """The lines of the one error, without the first, which counts them."""
    with pytest.raises(ConfigError) as error:
        load_config(values, overrides)
    first, *lines = str(error.value).splitlines()
    assert first == f"the configuration has {len(lines)} mistake{'s' if len(lines) > 1 else ''}:"
    return [line.strip() for line in lines]


# What is meant


def test_a_path_alone_is_a_configuration(tmp_path):
    config = load_config(write(tmp_path, "data: pets"))
    assert config == load_config({"data": "pets"}) == load_config({"data": {"path": "pets"}})
    assert config.data.path == "pets"
    assert config.source is None
    assert config.backbones == config.heads == config.strategies == ("auto",)
    assert config.search.metric == "f1_macro"


def test_a_path_object_is_a_path():
    assert load_config({"data": Path("pets")}).data.path == "pets"


def test_every_section_is_read(tmp_path):
    config = load_config(
        write(
            tmp_path,
            """
            data: {path: pets, label: kind, drop: id, classes: [1, two], per_class: 5}
            source: {data: birds, backbone: source_cnn}
            search: {trials: 7, metric: f1_micro, max_epochs: 3}
            backbones: mobilenet_v2
            heads: [linear, mlp]
            plugins: {dirs: [mine], disabled: last_k}
            slots: 2
            seed: 5
            """,
        )
    )
    assert config.data.drop == ("id",)
    assert config.data.classes == ("1", "two")
    assert config.source.data.path == "birds"
    assert config.source.epochs == 30
    assert (config.search.trials, config.search.metric) == (7, "f1_micro")
    assert config.backbones == ("mobilenet_v2",)
    assert config.heads == ("linear", "mlp")
    assert config.plugins.dirs == (Path("mine"),)
    assert config.plugins.disabled == ("last_k",)
    assert config.slots == "2"


@pytest.mark.parametrize(
    ("search", "seconds"),
    [({}, DEFAULT_SECONDS), ({"trials": 3}, None), ({"seconds": 5}, 5.0), ({"trials": 3, "seconds": 5}, 5.0)],
)
def test_a_search_without_any_limit_takes_ten_minutes(search, seconds):
    assert load_config({"data": "x", "search": search}).search.time_limit == seconds


def test_outputs_of_frozen_layers_are_kept_for_all_runs_where_nothing_else_is_said():
    cache = load_config({"data": "x"}).cache
    assert (cache.directory, cache.budget_gib, cache.device_share) == ("user", None, 0.4)
    cache = load_config({"data": "x", "cache": {"directory": "run", "budget_gib": 2}}, ["cache.device_share=0"]).cache
    assert (cache.directory, cache.budget_gib, cache.device_share) == ("run", 2.0, 0.0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"budget_gib": 0}, "cache.budget_gib: Input should be greater than 0, got 0"),
        ({"device_share": 1.5}, "cache.device_share: Input should be less than or equal to 1, got 1.5"),
        (
            {"budget": 5},
            "cache.budget: unknown key. Known: directory, budget_gib, device_share. Did you mean 'budget_gib'?",
        ),
    ],
)
def test_mistakes_of_the_cache(values, said):
    assert mistakes({"data": "x", "cache": values}) == [said]


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load_config({"data": "x"}).seed = 1


# The space


@pytest.mark.parametrize(
    ("written", "domain"),
    [
        ("{low: 1e-5, high: 1e-2, log: true}", Range(low=1e-5, high=1e-2, log=True)),
        ("{low: 0, high: 0.5}", Range(low=0.0, high=0.5)),
        ("{low: 3, high: 3}", Range(low=3.0, high=3.0)),
        ("[16, 32]", (16, 32)),
        ("[1e-3, 1e-2]", (0.001, 0.01)),
        ("[adamw, sgd]", ("adamw", "sgd")),
        ("[light, null, true]", ("light", None, True)),
        ("1e-3", 0.001),
        ("0.1", 0.1),
        ("3", 3),
        ("adamw", "adamw"),
        ("true", True),
        ("null", None),
    ],
)
def test_domains(tmp_path, written, domain):
    values = load_config(write(tmp_path, f"data: x\nspace: {{dropout: {written}}}")).space
    assert values == load_config({"data": "x"}, [f"space.dropout={written}"]).space == {"dropout": domain}
    assert type(values["dropout"]) is type(domain)


def test_a_range_may_be_given_as_one():
    domain = Range(low=0.0, high=1.0)
    assert load_config({"data": "x", "space": {"dropout": domain}}).space == {"dropout": domain}


FLOATS = st.floats(0, 1e6)
NAMES = st.text("abcdefgh_.", min_size=1, max_size=8)
DOMAINS = (
    st.tuples(FLOATS, FLOATS).map(lambda ends: {"low": min(ends), "high": max(ends)})
    | st.lists(st.integers() | FLOATS | st.booleans() | st.none(), min_size=1, max_size=4)
    | st.integers()
    | FLOATS
    | st.booleans()
    | st.sampled_from(("adamw", "light"))
)
CONFIGS = st.fixed_dictionaries(
    {"data": st.fixed_dictionaries({"path": NAMES}, optional={"drop": st.lists(NAMES), "classes": st.lists(NAMES)})},
    optional={
        "name": NAMES,
        "source": st.fixed_dictionaries({"data": NAMES, "backbone": NAMES}),
        "search": st.fixed_dictionaries({}, optional={"trials": st.integers(1, 99), "seconds": st.floats(1, 99)}),
        "heads": st.lists(NAMES, min_size=1),
        "space": st.dictionaries(NAMES, DOMAINS),
        "plugins": st.fixed_dictionaries({"dirs": st.lists(NAMES)}),
        "slots": st.integers(1, 9) | st.just("auto"),
        "seed": st.integers(0, 2**40),
    },
)


@given(CONFIGS)
@settings(deadline=None, max_examples=50)
def test_a_kept_configuration_reads_as_it_was(values):
    config = load_config(values)
    kept = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    assert load_config(yaml.safe_load(kept)) == config


# --set


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("search.trials=20", lambda config: config.search.trials == 20),
        ("search.seconds=1e2", lambda config: config.search.seconds == 100),
        ("source.learning_rate=1e-2", lambda config: config.source.learning_rate == 0.01),
        ("data.label=kind", lambda config: (config.data.path, config.data.label) == ("pets", "kind")),
        ("data=birds", lambda config: config.data.path == "birds"),
        ("data.path=sklearn:digits", lambda config: config.data.path == "sklearn:digits"),
        ("source.data.label=kind", lambda config: (config.source.data.path, config.source.data.label) == ("s", "kind")),
        ("source=null", lambda config: config.source is None),
        ("heads=[linear, mlp]", lambda config: config.heads == ("linear", "mlp")),
        ("heads=mlp", lambda config: config.heads == ("mlp",)),
        ("space.suffix.tap=3", lambda config: config.space == {"suffix.tap": 3, "dropout": 0.1}),
        ("space.dropout={low: 0, high: 1}", lambda config: config.space["dropout"] == Range(low=0.0, high=1.0)),
        ("space.suffix@net.tap=[1, 2]", lambda config: config.space["suffix@net.tap"] == (1, 2)),
        ("plugins.disabled=last_k", lambda config: config.plugins.disabled == ("last_k",)),
        ("name=a=b", lambda config: config.name == "a=b"),
        ("run_dir=here", lambda config: config.run_dir == Path("here")),
    ],
)
def test_an_override_changes_one_thing(override, changed):
    values = {"data": "pets", "source": {"data": "s", "backbone": "b"}, "space": {"dropout": 0.1}}
    assert changed(load_config(values, [override]))
    assert values == {"data": "pets", "source": {"data": "s", "backbone": "b"}, "space": {"dropout": 0.1}}


def test_the_last_override_wins():
    assert load_config({"data": "x"}, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("override", ["search.trials", "=3", ""])
def test_an_override_without_key_or_value_is_explained(override):
    with pytest.raises(ConfigError, match=r"expected KEY=VALUE, as in search\.trials=20"):
        load_config({"data": "x"}, [override])


@pytest.mark.parametrize("separator", ["|", " ", "#", ",", ";", "': '", "-"])
def test_a_separator_is_taken_letter_by_letter(separator):
    config = load_config({"data": "x"}, [f"data.label_separator={separator}"])
    assert config.data.label_separator == separator.strip("'")
    assert load_config({"data": "x"}, ["data.label_separator=null"]).data.label_separator is None


def test_an_empty_separator_is_refused():
    with pytest.raises(ConfigError, match=r"data\.label_separator: .*at least 1 character"):
        load_config({"data": "x"}, ["data.label_separator="])


@pytest.mark.parametrize("value", ["[1, 2", "2024-13-45", "{a: }: b"])
def test_an_override_that_is_no_yaml_is_named(value):
    with pytest.raises(ConfigError, match=r"--set 'name=.*': the value is not valid YAML"):
        load_config({"data": "x"}, [f"name={value}"])


# Mistakes


def test_all_mistakes_come_at_once_with_path_and_suggestion():
    found = mistakes(
        {
            "data": {"path": "x", "lable": "y", "validation_fraction": 1.5},
            "source": {"data": {"pth": "z"}, "backbone": "b", "epoch": 3},
            "search": {"trails": 3, "max_epochs": 0, "metric": "f1"},
            "sarch": {},
            "plugins": {"dir": "x"},
            "seed": -1,
            "space": {"a": [], "b": {"low": 3, "high": 1}, "c": {"low": 1, "hihg": 2}},
        }
    )
    expected = [
        ("data.lable: unknown key. Known: path, test, label,", "Did you mean 'label'?"),
        ("data.validation_fraction: Input should be less than 1", "got 1.5"),
        ("source.data.path: required, but missing", ""),
        ("source.data.pth: unknown key.", "Did you mean 'path'?"),
        ("source.epoch: unknown key. Known: data, backbone, epochs,", "Did you mean 'epochs'?"),
        ("search.trails: unknown key. Known: trials, seconds,", "Did you mean 'trials'?"),
        ("search.max_epochs: Input should be greater than or equal to 1", "got 0"),
        ("search.metric: Input should be 'f1_macro',", "got 'f1'"),
        ("sarch: unknown key. Known: data, name,", "Did you mean 'search'?"),
        ("plugins.dir: unknown key. Known: dirs, disabled.", "Did you mean 'dirs'?"),
        ("seed: Input should be greater than or equal to 0", "got -1"),
        ("space.a: a list of choices must not be empty", ""),
        ("space.b: a range is {low: .., high: .., log: true|false}; low must be <= high", "low=3.0 and high=1.0"),
        ("space.c: a range is {low: .., high: .., log: true|false}; high Field required", "hihg Extra inputs"),
    ]
    for start, part in expected:
        (line,) = [line for line in found if line.startswith(start)]
        assert part in line
    assert len(found) == len(expected)


def test_data_is_required():
    assert mistakes({}) == ["data: required, but missing"]
    assert mistakes({"source": {}}) == [
        "data: required, but missing",
        "source.data: required, but missing",
        "source.backbone: required, but missing",
    ]


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        ({"low": 0, "high": 1, "log": True}, "a log range must start above 0, got low=0.0"),
        ({"low": float("nan"), "high": 1}, "low must be <= high"),
        ({"low": "small", "high": 1}, "low Input should be a valid number"),
        ([[1, 2]], r"a choice must be text, a number, true, false or null, got \[1, 2\]"),
        ([{"a": 1}], "a choice must be text, a number, true, false or null"),
    ],
)
def test_a_domain_that_is_none_is_explained(domain, message):
    with pytest.raises(ConfigError, match=f"space.dropout: .*{message}"):
        load_config({"data": "x", "space": {"dropout": domain}})


def test_a_value_of_the_wrong_kind_is_shown():
    assert mistakes({"data": "x", "slots": 2.5}) == ["slots: Input should be a valid string, got 2.5"]
    assert mistakes({"data": 3})[0].startswith("data: ")
    assert mistakes({"data": "x", "search": "long"})[0].startswith("search: ")
    assert mistakes({"data": "x", "space": [1]})[0].startswith("space: ")


def test_mistakes_of_a_file_name_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.yaml has 1 mistake:\n  search\.trails: unknown key"):
        load_config(write(tmp_path, "data: x\nsearch: {trails: 3}"))


@pytest.mark.parametrize(
    ("text", "kind"), [("", "NoneType"), ("- data", "list"), ("just words", "str"), ("# nothing", "NoneType")]
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, kind):
    with pytest.raises(ConfigError, match=f"must be a mapping with at least `data:`, got {kind}"):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize("text", ["data: [1, 2", "data: x\n\tname: y", "name: 2024-13-45"])
def test_a_file_that_is_no_yaml_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=r"run\.yaml is not valid YAML: "):
        load_config(write(tmp_path, text))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*gone\.yaml: No such file or directory"):
        load_config(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*: Is a directory"):
        load_config(tmp_path)
    (tmp_path / "run.yaml").write_bytes(b"data: \xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"run\.yaml is not a text file; expected YAML"):
        load_config(tmp_path / "run.yaml")


def test_no_field_is_without_a_default_but_the_data():
    assert [name for name, field in RunConfig.model_fields.items() if field.is_required()] == ["data"]
