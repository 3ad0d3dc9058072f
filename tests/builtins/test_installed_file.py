from __future__ import annotations

import sys

import pytest

from automl_tl_builtins.installed_file import installed_file


def test_a_file_is_found_without_importing_its_package(tmp_path, monkeypatch):
    package = tmp_path / "exploding_package"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "data" / "weights.pth").write_bytes(b"x")
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_file("exploding_package", "data/weights.pth") == package / "data" / "weights.pth"
    assert "exploding_package" not in sys.modules


@pytest.mark.parametrize(("package", "relative"), [("no_such_package", "x"), ("json", "no_such_file"), ("bisect", "x")])
def test_what_is_missing_is_none(package, relative):
    assert installed_file(package, relative) is None
