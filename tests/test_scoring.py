"""`automl-tl score`: what a linear head would reach on every tap, beside random weights and raw inputs."""

import json

import pytest

import automl_tl

DIGITS = {
    "data": {"path": "sklearn:digits", "per_class": 10, "image_size": 32},
    "backbones": "mobilenet_v2",
    "slots": "inline",
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOML_TL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield automl_tl.score(DIGITS)


def test_every_tap_is_scored(table):
    (scored,) = table.backbones
    taps = scored.transferred.taps
    assert [tap.tap for tap in taps] == list(range(1, len(taps) + 1))
    assert sorted(scored.transferred.ranked) == [tap.tap for tap in taps]
    for tap in taps:
        low, high = tap.interval
        assert 0 <= low <= high <= 1
    assert scored.parameters > 2_000_000
    assert scored.seconds_per_1000 > 0


def test_what_was_transferred_shows_in_the_middle(table):
    """On digits, the middle of an ImageNet network reads better than the same network at random weights."""
    (scored,) = table.backbones
    best = scored.transferred.best
    assert best.f1 > scored.random.taps[best.tap - 1].f1 + 0.1
    assert best.f1 > table.raw_inputs


def test_a_second_look_passes_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("AUTOML_TL_CACHE", str(tmp_path / "cache"))
    first, second = (automl_tl.score(DIGITS, random=False) for _ in range(2))
    assert first.backbones[0].n_rows > 0
    assert second.backbones[0].n_rows == 0
    assert first.backbones[0].transferred.taps == second.backbones[0].transferred.taps
    assert first.backbones[0].random is None


def test_the_command_prints_a_table_or_data(cli):
    options = ["--set", "data.per_class=6", "--set", "data.image_size=32", "--set", "backbones=mobilenet_v2"]
    told = cli("score", "sklearn:digits", "--slots", "inline", "--no-random", *options)
    assert told.code == 0, told.err
    assert "mobilenet_v2" in told.out
    assert "raw inputs without a backbone" in told.out
    data = cli("score", "sklearn:digits", "--slots", "inline", "--no-random", "--json", *options)
    found = json.loads(data.out)
    assert [each["backbone"] for each in found["backbones"]] == ["mobilenet_v2"]
    assert len(found["backbones"][0]["taps"]) == 9


def test_without_weights_there_is_nothing_to_score(cli):
    told = cli("score", "sklearn:wine", "--slots", "inline")
    assert told.code == 2
    assert "no backbone here has weights to transfer" in told.err


def test_a_source_task_is_no_matter_of_scores(cli, tmp_path):
    config = tmp_path / "source.yaml"
    config.write_text("data: sklearn:wine\nsource: {data: sklearn:wine, backbone: source_mlp}\n")
    told = cli("score", config, "--slots", "inline")
    assert told.code == 2
    assert "leave `source:` out" in told.err
