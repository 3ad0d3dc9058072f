"""The documents say what is true: their commands have these options, their files exist, their Python runs.

A Python block is compiled; it is run too when the line before it is `<!-- runs -->`.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from automl_tl.cli import app

pytestmark = pytest.mark.repo

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "plugins/README.md", "plugins/example_surgical/README.md")
BLOCK = re.compile(r"^(?P<runs><!-- runs -->\n+)?```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```", re.M | re.S)
SHELL = ("", "sh", "bash", "shell", "console")
INLINE = re.compile(r"`(automl-tl [^`]+|make [^`]+)`")
CONFIG = re.compile(r"\bconfigs/[\w.-]+\.yaml\b")


def blocks(document, languages):
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    return [match for match in BLOCK.finditer(text) if match["language"] in languages]


def commands(document, program):
    """The arguments of every call of `program`, in shell blocks and in the running text."""
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    code = [match["code"] for match in blocks(document, SHELL)] + INLINE.findall(BLOCK.sub("", text))
    for line in "\n".join(code).replace("\\\n", " ").splitlines():
        words = shlex.split(line.strip().removeprefix("$ "), comments=True) if program in line else []
        if words and words[0].rpartition("/")[2] == program:
            yield words[1:]


def unknown_words(arguments):
    """Commands and options of an `automl-tl` line that the program does not know."""
    command = typer.main.get_command(app)
    unknown = []
    for word in (word.strip("[]") for word in arguments):
        if hasattr(command, "commands") and not word.startswith("-"):
            if word not in command.commands:
                return [*unknown, word]
            command = command.commands[word]
        elif word.startswith("-"):
            known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
            unknown += [word] if word.partition("=")[0] not in known else []
    return unknown


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_options_exist(document):
    wrong = {" ".join(line): unknown_words(line) for line in commands(document, "automl-tl")}
    assert {line: words for line, words in wrong.items() if words} == {}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_exist(document):
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    for words in commands(document, "make"):
        assert {word for word in words if "=" not in word and not word.startswith("-")} <= targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_configurations_and_linked_files_exist(document):
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    missing = [name for name in set(CONFIG.findall(text)) if not (REPOSITORY / name).exists()]
    missing += [link for link in links if not (REPOSITORY / document).parent.joinpath(link).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_compiles(document):
    for block in blocks(document, ("python",)):
        compile(block["code"], document, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_that_is_marked_runs(document, tmp_path):
    for block in blocks(document, ("python",)):
        if block["runs"]:
            done = subprocess.run(
                [sys.executable, "-c", block["code"]],
                cwd=tmp_path,
                env={**os.environ, "AUTOML_TL_CACHE": str(tmp_path)},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{block['code']}\n{done.stderr}"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_configurations_say_how_to_run_them_and_are_valid(path):
    from automl_tl.config import load_config

    assert path.read_text().splitlines()[0] == f"# automl-tl search configs/{path.name}"
    load_config(path)


def test_what_is_wrong_is_found():
    assert unknown_words(["search", "x.yaml", "--trails", "3"]) == ["--trails"]
    assert unknown_words(["serach", "x.yaml"]) == ["serach"]
    assert unknown_words(["plugins", "list", "--json"]) == []
    assert unknown_words(["plugins", "list", "--slots", "1"]) == ["--slots"]
    assert unknown_words(["--version"]) == []
