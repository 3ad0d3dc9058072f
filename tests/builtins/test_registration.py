from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from automl_tl.plugin import Backbone, FreezingStrategy, Head

ROOT = Path(__file__).parents[2]
ENTRY_POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["automl_tl"]
HOOKS = {
    "backbones": ("automl_tl_backbones", Backbone),
    "heads": ("automl_tl_heads", Head),
    "strategies": ("automl_tl_freezing_strategies", FreezingStrategy),
}
PACKAGE = Path(import_module("automl_tl_builtins").__path__[0])


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_entry_point_registers_one_plugin_of_its_name(name):
    module = import_module(ENTRY_POINTS[name])
    hook, kind = HOOKS[ENTRY_POINTS[name].split(".")[1]]
    (plugin,) = getattr(module, hook)()
    assert isinstance(plugin, kind)
    assert plugin.name == name
    assert module.__doc__


def test_every_plugin_module_is_an_entry_point():
    modules = {
        f"automl_tl_builtins.{folder}.{path.stem}"
        for folder in HOOKS
        for path in (PACKAGE / folder).glob("*.py")
        if path.stem != "__init__"
    }
    assert modules == set(ENTRY_POINTS.values())


def test_listing_the_builtins_loads_no_heavy_library():
    code = "\n".join(
        [
            "import importlib, sys",
            f"modules = [importlib.import_module(name) for name in {sorted(ENTRY_POINTS.values())!r}]",
            f"hooks = {[hook for hook, _ in HOOKS.values()]!r}",
            "values = [getattr(m, hook)() for m in modules for hook in hooks if hasattr(m, hook)]",
            "[v.weights.find() for (v,) in values if getattr(v, 'weights', None)]",
            "heavy = {'torch', 'optuna', 'sklearn', 'numpy', 'tokenizers', 'safetensors'} & set(sys.modules)",
            "sys.exit(f'loaded {heavy}' if heavy else 0)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_builtins_import_the_public_plugin_module_only(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        ours = [name for name in names if name.split(".")[0] == "automl_tl"]
        assert set(ours) <= {"automl_tl.plugin"}
