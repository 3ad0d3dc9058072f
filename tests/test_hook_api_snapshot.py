"""Plugin authors depend on every name, field and argument in `automl_tl.plugin`: changing one must be a decision.

`python tests/test_hook_api_snapshot.py` writes the snapshot anew.
"""

import inspect
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import FunctionType

from automl_tl import hookspecs, plugin

SNAPSHOT = Path(__file__).parent / "hook_api.txt"
ADVICE = f"""the plugin API is not what {SNAPSHOT.name} says.
- By mistake? Undo the change.
- Only added something that existing plugins need not know (a field with a default, a hook)? Write the snapshot anew
  with `python tests/{Path(__file__).name}`, and a line under "Hook API" in CHANGELOG.md.
- Anything else breaks existing plugins: raise HOOK_API too, and see "Versions of the hook API" in plugins/README.md."""


def render():
    """The whole surface as text: hooks, constants, then each public class with its fields and methods."""
    lines = [f"HOOK_API = {plugin.HOOK_API}", ""]
    lines += [f"{name}{signature(hook)}" for name, hook in vars(hookspecs).items() if name.startswith("automl_tl_")]
    for name, value in vars(plugin).items():
        if isinstance(value, type) and value.__module__ == plugin.__name__:
            lines += ["", f"class {name}", *(f"    {line}" for line in [*render_fields(value), *render_methods(value)])]
    for name in ("Choice", "Modality", "Action", "Part"):
        lines += ["", f"{name} = {getattr(plugin, name)}"]
    return "\n".join(lines) + "\n"


def render_fields(cls):
    if not is_dataclass(cls):
        return [f"{name}: {kind.__forward_arg__}" for name, kind in vars(cls).get("__annotations__", {}).items()]
    parameters = cls.__dataclass_params__
    lines = [f"dataclass(frozen={parameters.frozen})"]
    for field in fields(cls):
        default = "" if field.default is MISSING else f" = {field.default!r}"
        lines.append(f"{field.name}: {field.type}{default}{' (keyword only)' if field.kw_only else ''}")
    return lines


def render_methods(cls):
    functions = {name: value.fget if isinstance(value, property) else value for name, value in vars(cls).items()}
    return [
        f"{'property ' if isinstance(vars(cls)[name], property) else ''}{name}{signature(function)}"
        for name, function in functions.items()
        if isinstance(function, FunctionType) and (name == "__call__" or not name.startswith("_"))
    ]


def signature(function):
    return str(inspect.signature(function)).replace("'", "")  # annotations are kept as strings


def test_the_plugin_api_is_as_recorded():
    assert render() == SNAPSHOT.read_text(), ADVICE


if __name__ == "__main__":
    SNAPSHOT.write_text(render())
