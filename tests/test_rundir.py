"""The run directory: made once, read back as it was written, never half of a file."""

import pytest

from automl_tl.config import load_config
from automl_tl.errors import RunError
from automl_tl.rundir import RunDirectory, new_run_directory

CONFIG = {
    "data": "pets",
    "name": "pets",
    "space": {"dropout": {"low": 0.1, "high": 0.3}, "optimizer": ["adam", "sgd"], "weight_decay": "1e-7"},
    "plugins": {"dirs": ["mine"]},
    "search": {"seconds": 90},
}


def test_without_a_wish_the_name_says_what_and_when(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = new_run_directory(None, "pets")
    assert directory.path.parts[0] == "runs"
    assert directory.path.name.startswith("pets-2")
    assert not directory.path.exists()
    directory.make()
    assert directory.path.is_dir()


def test_an_empty_folder_will_do(tmp_path):
    assert new_run_directory(tmp_path, "x").path == tmp_path


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            "config.yaml",
            r"already holds a run; continue it with: automl-tl resume .*taken, or choose another --run-dir",
        ),
        ("photo.png", r"taken is not empty and holds no run; choose another --run-dir"),
    ],
)
def test_a_folder_that_holds_something_is_refused(tmp_path, made, message):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / made).touch()
    with pytest.raises(RunError, match=message):
        new_run_directory(tmp_path / "taken", "x")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file is a file; choose another --run-dir"):
        new_run_directory(tmp_path / "file", "x")
    with pytest.raises(RunError, match=r"cannot make the run directory .*choose another --run-dir"):
        RunDirectory(tmp_path / "file" / "below").make()


def test_the_configuration_comes_back_as_it_was(tmp_path):
    config, directory = load_config(CONFIG), RunDirectory(tmp_path)
    directory.write_config(config, tmp_path)
    assert directory.read_config() == (config, tmp_path)
    assert directory.config.read_text().startswith(f"# automl-tl resume {tmp_path}\n")


def test_without_a_configuration_file_paths_start_where_the_command_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = RunDirectory(tmp_path / "run")
    directory.write_config(load_config(CONFIG), None)
    monkeypatch.chdir("/")
    assert directory.read_config()[1] == tmp_path


def test_what_is_no_run_is_named(tmp_path):
    directory = RunDirectory(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"nothing is not a run directory; expected a config\.yaml in it"):
        directory.read_config()
    with pytest.raises(RunError, match=r"nothing has no result yet; finish it with: automl-tl resume"):
        directory.read_result()


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00"])
def test_a_damaged_file_is_named(tmp_path, content):
    directory = RunDirectory(tmp_path)
    directory.result.write_bytes(content)
    with pytest.raises(RunError, match=r"result\.json is missing or damaged"):
        directory.read_result()


def test_files_are_written_whole_or_not_at_all(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.write_json(directory.result, {"score": 1})
    with pytest.raises(TypeError):
        directory.write_json(directory.result, {"score": object()})
    assert directory.read_result() == {"score": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot write .*file/result\.json.*choose another place with --run-dir"):
        RunDirectory(tmp_path / "file").write_json(tmp_path / "file" / "result.json", {})


def test_openings_of_the_test_split_are_counted(tmp_path):
    directory = RunDirectory(tmp_path)
    assert [directory.count_opening() for _ in range(3)] == [1, 2, 3]
