"""`automl-tl cache`, on stores of its own."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from automl_tl.cache_cli import cache_app
from automl_tl.features.store import GIB, EntryKey, FeatureStore, default_budget, feature_root

DAY = 86400.0

KEYS = {
    "samples": EntryKey(kind="samples", inputs="image-64", dtype="uint8"),
    "pooled": EntryKey(kind="pooled", inputs="image-64", backbone="lite", weights="w", dtype="float16"),
    "cut": EntryKey(kind="activations", inputs="text-1", backbone="mini", weights="v", cut=4, dtype="bfloat16"),
}


def build(store, key, *, rows, seconds, days_ago=0.0):
    entry = store.entry(key)
    digests = np.random.default_rng(0).integers(0, 256, (rows, 16), dtype=np.uint8)
    with entry.building(), entry.shard(rows, row_shape=(1000,)) as shard:
        shard.write(digests, np.zeros((rows, 1000), dtype=entry.stored_dtype))
        shard.seconds = seconds
    used = time.time() - days_ago * DAY
    os.utime(entry.directory / "used", (used, used))
    return entry


@pytest.fixture
def store(tmp_path):
    store = FeatureStore(root=tmp_path / "features", budget=GIB)
    build(store, KEYS["samples"], rows=3000, seconds=1.5, days_ago=10.5)
    build(store, KEYS["pooled"], rows=40, seconds=61.25, days_ago=2.5)
    build(store, KEYS["cut"], rows=500, seconds=7.0)
    return store


@pytest.fixture
def invoke(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments, exit_code=0):
        result = CliRunner().invoke(cache_app, list(map(str, arguments)))
        assert result.exit_code == exit_code, result.output
        return result.output

    return run


def kinds(store):
    return {entry.key.kind for entry in store.facts()}


def test_list_shows_what_is_kept_and_what_it_saves(invoke, store):
    text = invoke("list", "--dir", store.root)
    lines = [line for line in text.splitlines() if line.strip()]
    samples, pooled, cut = (line.split() for line in lines[2:5])
    assert samples == ["-", "samples", "image", "64", "3,000", "2.9", "MiB", "1.5", "s", *samples[9:]]
    assert pooled[:5] == ["lite", "pooled", "image", "64", "40"]
    assert pooled[6:9] == ["KiB", "61.2", "s"]
    assert cut[:4] == ["mini", "cut", "4", "text"]
    assert cut[-1] in ("now", "ago")
    total = sum(entry.n_bytes for entry in store.facts()) / 2**20
    assert f"{total:.1f} MiB of " in lines[-1]
    assert lines[-1].endswith(f"the default budget, in {store.root}")


def test_list_can_be_read_by_programs(invoke, store):
    answer = json.loads(invoke("list", "--dir", store.root, "--json"))
    assert answer["directory"] == str(store.root)
    assert answer["budget"] == pytest.approx(default_budget(store.root), rel=0.1)
    assert answer["total"] == sum(entry.n_bytes for entry in store.facts())
    samples, pooled, cut = answer["entries"]
    assert (samples["backbone"], samples["what"], samples["rows"]) == ("", "prepared samples", 3000)
    assert (pooled["weights"], pooled["seconds"], pooled["name"]) == ("w", 61.25, KEYS["pooled"].digest())
    assert (cut["kind"], cut["cut"], cut["view"], cut["compute"]) == ("activations", 4, "clean", "float32")


def test_the_user_s_store_is_listed_and_cleared_unless_told_otherwise(invoke, monkeypatch, tmp_path):
    monkeypatch.setenv("AUTOML_TL_CACHE", str(tmp_path / "cache"))
    assert invoke("list").strip().startswith("0 B of ")
    assert not feature_root().exists()
    build(FeatureStore(root=feature_root(), budget=GIB), KEYS["cut"], rows=1, seconds=1.0)
    assert "cut 4" in invoke("list")
    assert "Freed 2." in invoke("clear")
    assert "activations at cut 4" not in invoke("list")


def test_an_entry_of_another_version_is_listed_and_cleared(invoke, store):
    (store.entry(KEYS["cut"]).directory / "entry.json").write_text('{"format": 0}')
    assert "unreadable" in invoke("list", "--dir", store.root)
    entries = json.loads(invoke("list", "--dir", store.root, "--json"))["entries"]
    assert [entry["what"] for entry in entries if "kind" not in entry] == ["not readable by this version"]
    invoke("clear", "--dir", store.root, "--backbone", "lite")
    assert len(store.facts()) == 2
    invoke("clear", "--dir", store.root)
    assert store.facts() == []


def test_clear_deletes_all_and_says_how_much(invoke, store):
    total = sum(entry.n_bytes for entry in store.facts()) / 2**20
    said = invoke("clear", "--dir", store.root)
    assert said.strip() == f"Freed {total:.1f} MiB, 3 entries, in {store.root}"
    assert store.facts() == []
    assert invoke("clear", "--dir", store.root).startswith("Freed 0 B, 0 entries, in ")


def test_clear_one_backbone(invoke, store):
    assert ", 1 entry, " in invoke("clear", "--dir", store.root, "--backbone", "lite")
    assert kinds(store) == {"samples", "activations"}


@pytest.mark.parametrize(
    ("days", "left"), [("30", {"samples", "pooled", "activations"}), ("10", {"pooled", "activations"}), ("0", set())]
)
def test_clear_what_was_not_used_for_days(invoke, store, days, left):
    invoke("clear", "--dir", store.root, "--older-than", days)
    assert kinds(store) == left


def test_what_is_old_of_one_backbone(invoke, store):
    invoke("clear", "--dir", store.root, "--older-than", "1.5", "--backbone", "mini")
    assert len(store.facts()) == 3
    invoke("clear", "--dir", store.root, "--older-than", "1.5", "--backbone", "lite")
    assert kinds(store) == {"samples", "activations"}


def test_an_unknown_backbone_clears_nothing_and_is_named(invoke, store):
    said = invoke("clear", "--dir", store.root, "--backbone", "lit")
    assert "Nothing to clear: no backbone in the store named 'lit'. Known: lite, mini. Did you mean 'lite'?" in said
    assert len(store.facts()) == 3


def test_clear_leaves_what_a_run_is_building(invoke, store):
    with store.entry(KEYS["cut"]).building():
        said = invoke("clear", "--dir", store.root)
    assert ", 2 entries, " in said
    assert "Left, because a run is building it: mini, activations at cut 4" in said
    assert kinds(store) == {"activations"}


def test_a_negative_age_is_refused(invoke, store):
    invoke("clear", "--dir", store.root, "--older-than", "-1", exit_code=2)
    assert len(store.facts()) == 3


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 << 20, "5.0 MiB"),
        (2048 * GIB, "2048.0 GiB"),
    ],
)
def test_sizes_are_said_for_people(n_bytes, text):
    from automl_tl.cache_cli import _size

    assert _size(n_bytes) == text


def test_it_answers_without_torch():
    code = (
        "import sys; from automl_tl.cache_cli import cache_app;"
        "print([name for name in ('torch', 'optuna', 'sklearn', 'pandas') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
