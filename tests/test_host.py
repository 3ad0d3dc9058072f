"""Finding, loading, checking and indexing plugins. None of these tests depends on what is installed here."""

import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from automl_tl.errors import PluginError
from automl_tl.host import PluginSources, availability, import_file, items_of, kind_of, load_host
from automl_tl.plugin import Backbone, FreezingStrategy, Head, TabularInput, Weights

BROKEN = Path(__file__).parent / "broken_plugins"
PLUGIN = """
from automl_tl.plugin import Head, hookimpl

@hookimpl
def automl_tl_heads():
    return [Head(name={name!r}, description="", build=print)]
"""
FAULTS = {
    "import_error": "ModuleNotFoundError: No module named 'no_such_library'",
    "wrong_argument": "hookimpl definition: automl_tl_heads(model) "
    "Argument(s) {'model'} are declared in the hookimpl but can not be found in the hookspec",
    "misspelt_hook": "no hook named 'automl_tl_head'. Known: automl_tl_backbones, automl_tl_freezing_strategies, "
    "automl_tl_heads. Did you mean 'automl_tl_heads'?",
    "wrong_type": "automl_tl_heads() must return an iterable of Head, got 'linear' in it",
    "returns_nothing": "automl_tl_heads() must return an iterable of Head, got None",
    "raises": "RuntimeError: no driver for this device",
    "exits": "SystemExit: 3",
    "no_hook": "implements no hook; define automl_tl_backbones or automl_tl_heads or automl_tl_freezing_strategies, "
    "marked with @hookimpl",
    "newer_api": "is written for hook API 99, this automl-tl has 1; upgrade automl-tl",
    "bad_name": "head 'two layers': the name must be a Python identifier",
    "no_function": "freezing strategy 'static': plan must be a function",
    "listed_groups": "backbone 'listed': layer_groups must be a non-empty tuple of names, got ['a', 'b']",
    "repeated_group": "backbone 'repeated': layer_groups must be unique, got ('a', 'b', 'a')",
    "no_input": "backbone 'unclear': input must be an ImageInput, TextInput or TabularInput, got 'image'",
    "twice": "head 'mine' is provided twice",
}


def head(name="mine"):
    return Head(name=name, description="", build=print)


def backbone(**changes):
    return Backbone(
        **{"name": "net", "description": "", "input": TabularInput(), "layer_groups": ("a",), "build": print} | changes
    )


def write_plugin(directory, file, name):
    directory.mkdir(exist_ok=True)
    path = directory / f"{file}.py"
    path.write_text(PLUGIN.format(name=name))
    return path


def install(site, distribution, entry_points, version="1.0"):
    """Write the metadata of an installed distribution."""
    metadata = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text("[automl_tl]\n" + "\n".join(entry_points) + "\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A directory of installed distributions, the only ones that the host sees."""
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(path)

    def entry_points(group):
        return [e for found in distributions(path=[str(path)]) for e in found.entry_points if e.group == group]

    monkeypatch.setattr("automl_tl.host.entry_points", entry_points)
    return path


def test_nothing_installed_says_what_to_do(site):
    with pytest.raises(PluginError, match=r"no plugins are installed; in a checkout run: pip install -e \."):
        load_host()


def test_an_entry_point_is_found_with_its_distribution(site):
    write_plugin(site, "wide_head", "wide")
    install(site, "some-heads", ["wide = wide_head"])
    host = load_host()
    [record] = host.records
    assert (record.name, record.source, record.provides) == ("wide", "some-heads 1.0", (("head", "wide"),))
    assert (record.distribution, record.version) == ("some-heads", "1.0")
    assert host.head("wide").name == "wide"
    assert host.owner("head", "wide") is record
    assert host.versions() == {"wide": "some-heads 1.0"}


def test_an_entry_point_may_name_an_object(site):
    (site / "objects.py").write_text(
        "from types import SimpleNamespace\nfrom automl_tl.plugin import Head, hookimpl\n"
        "@hookimpl\ndef automl_tl_heads():\n    yield Head(name='h', description='', build=print)\n"
        "plugin = SimpleNamespace(automl_tl_heads=automl_tl_heads)\n"
    )
    install(site, "some-heads", ["h = objects:plugin"])
    assert list(load_host().heads) == ["h"]


def test_a_broken_plugin_takes_no_other_down(site):
    write_plugin(site, "fine", "fine")
    install(site, "alpha", ["absent = no_such_module"])
    install(site, "omega", ["fine = fine"])
    host = load_host()
    assert [record.name for record in host.broken()] == ["absent"]
    assert list(host.heads) == ["fine"]
    with pytest.raises(PluginError) as error:
        host.head("fines")
    assert str(error.value) == (
        "no head named 'fines'. Known: fine. Did you mean 'fine'?\nPlugins that failed to load:\n"
        "  absent (alpha 1.0): ModuleNotFoundError: No module named 'no_such_module'"
    )


def test_two_distributions_with_one_plugin_name_are_an_error(site):
    write_plugin(site, "one", "one")
    write_plugin(site, "two", "two")
    install(site, "alpha", ["shared = one"])
    install(site, "omega", ["shared = two"])
    with pytest.raises(PluginError, match=r"two plugins are named 'shared': in alpha 1\.0 and in omega 1\.0"):
        load_host()


def test_two_plugins_with_one_head_are_an_error_until_one_is_disabled(site, tmp_path):
    write_plugin(site, "theirs", "mine")
    install(site, "alpha", ["theirs = theirs"])
    path = write_plugin(tmp_path / "dir", "ours", "mine")
    sources = PluginSources(dirs=(tmp_path / "dir",))
    with pytest.raises(PluginError) as error:
        load_host(sources)
    assert str(error.value) == (
        f"two plugins provide the head 'mine': theirs (alpha 1.0) and ours ({path}); "
        "leave one of them out with plugins.disabled"
    )
    host = load_host(PluginSources(dirs=(tmp_path / "dir",), disabled=("theirs",)))
    assert host.owner("head", "mine").name == "ours"


def test_a_disabled_plugin_is_not_even_imported(site):
    install(site, "alpha", ["explosive = no_such_module"])
    host = load_host(PluginSources(disabled=("explosive",)))
    assert host.records == ()
    with pytest.raises(PluginError, match=r"Left out by plugins\.disabled: explosive\."):
        host.head("explosive")


def test_disabling_what_is_not_there_is_an_error(site):
    install(site, "alpha", ["last_k = no_such_module"])
    with pytest.raises(PluginError, match=r"'last_kk', which is no plugin\. Did you mean 'last_k'\?"):
        load_host(PluginSources(disabled=("last_kk",)))


def test_files_of_a_directory_are_plugins(site, tmp_path):
    path = write_plugin(tmp_path / "dir", "my_head", "mine")
    for ignored in ("_helper", "test_my_head"):
        write_plugin(tmp_path / "dir", ignored, ignored)
    before = list(sys.path)
    host = load_host(PluginSources(dirs=(tmp_path / "dir", tmp_path / "dir" / ".." / "dir")))
    [record] = host.records
    assert list(host.heads) == ["mine"]
    assert record.name == "my_head"
    assert Path(record.source).samefile(path)
    assert record.distribution is None
    assert sys.path == before
    assert "my_head" not in sys.modules


def test_the_version_of_a_file_is_its_content(site, tmp_path):
    sources = PluginSources(dirs=(tmp_path / "dir",))
    path = write_plugin(tmp_path / "dir", "my_head", "mine")
    before = load_host(sources).versions()
    assert load_host(sources).versions() == before
    path.write_text(path.read_text() + "# edited\n")
    assert load_host(sources).versions() != before


def test_a_missing_directory_is_an_error(tmp_path):
    with pytest.raises(PluginError, match=r"plugin directory .*absent does not exist; correct plugins\.dirs or"):
        load_host(PluginSources(dirs=(tmp_path / "absent",)))


def test_objects_are_plugins(site):
    host = load_host(PluginSources(objects=(head("a"), backbone(name="a"))))
    assert (list(host.heads), list(host.backbones)) == (["a"], ["a"])
    assert host.owner("backbone", "a").source == "passed in Python"
    assert host.versions() == {"python": "passed in Python"}


def test_an_invalid_object_is_an_error(site):
    with pytest.raises(PluginError, match="head 'a b': the name must be a Python identifier"):
        load_host(PluginSources(objects=(head("a b"),)))
    with pytest.raises(PluginError, match="expected a Backbone, Head or FreezingStrategy, got 'linear'"):
        load_host(PluginSources(objects=("linear",)))


def test_the_three_kinds_have_separate_names(site):
    strategy = FreezingStrategy(name="same", description="", plan=print)
    host = load_host(PluginSources(objects=(head("same"), backbone(name="same"), strategy)))
    assert [kind_of(item) for item in (host.backbone("same"), host.head("same"), host.strategy("same"))] == [
        "backbone",
        "head",
        "strategy",
    ]
    for find, kind in ((host.backbone, "backbone"), (host.head, "head"), (host.strategy, "freezing strategy")):
        with pytest.raises(PluginError, match=f"no {kind} named 'other'. Known: same."):
            find("other")
    with pytest.raises(PluginError, match="no freezing strategy named 'other'"):
        host.owner("strategy", "other")


@pytest.fixture(scope="module")
def broken():
    records = load_host(PluginSources(dirs=(BROKEN,))).records
    return {record.name: record for record in records if record.distribution is None}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_recorded(broken, name):
    assert broken[name].error == FAULTS[name]
    assert broken[name].provides == ()


def test_every_broken_plugin_has_its_fault(broken):
    assert {name for name, record in broken.items() if record.error} == set(FAULTS)
    assert broken["sound"].provides == (("head", "sound"),)


def test_a_file_that_fails_leaves_no_module_behind():
    before = set(sys.modules)
    with pytest.raises(ModuleNotFoundError):
        import_file(BROKEN / "import_error.py")
    assert set(sys.modules) == before


def test_a_file_is_the_same_plugin_as_an_installed_module():
    [item] = items_of(import_file(BROKEN / "sound.py"))
    assert (item.name, item.build) == ("sound", print)


def test_a_hook_of_another_version_may_be_optional():
    from types import SimpleNamespace

    from automl_tl.plugin import hookimpl

    @hookimpl(optionalhook=True)
    def automl_tl_metrics():
        raise RuntimeError("must not be called")

    @hookimpl
    def automl_tl_heads():
        return [head()]

    plugin = SimpleNamespace(automl_tl_metrics=automl_tl_metrics, automl_tl_heads=automl_tl_heads)
    assert [item.name for item in items_of(plugin)] == ["mine"]


def weights(find):
    return Weights(find=find, install="pip install zoo", origin="", license="", sha256="")


def raising():
    raise OSError("disk gone")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"requires": ("json", "xml.dom")}, None),
        (
            {"requires": ("json", "no_such", "no_such.part"), "install": "pip install such"},
            "needs no_such, no_such.part: pip install such",
        ),
        ({"weights": weights(lambda: Path("w.safetensors"))}, None),
        ({"weights": weights(lambda: None)}, "weights not installed: pip install zoo"),
        ({"weights": weights(raising)}, "looking for its weights failed: OSError: disk gone"),
    ],
)
def test_availability(changes, expected):
    assert availability(backbone(**changes)) == expected


def test_loading_plugins_loads_no_heavy_library():
    code = (
        "import sys; from automl_tl.host import PluginSources, load_host; from pathlib import Path;"
        f"load_host(PluginSources(dirs=(Path({str(BROKEN)!r}),)));"
        "print(sorted({'torch', 'optuna', 'sklearn', 'pandas', 'pydantic'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
