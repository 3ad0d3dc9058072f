"""What a source task is worth: the rule, the test of the source model itself, and a run that is told both."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from automl_tl.api import search
from automl_tl.finish.source_verdict import has_learned, source_verdict
from automl_tl.metrics.scores import confusion_matrix

K = 4
LABELS = np.arange(400) % K
FACTS = {"learned": True, "beside": "random weights", "layer_group": "conv4"}


def said(share, seed=0, labels=LABELS):
    """Predictions of which about this share is right."""
    generator = np.random.default_rng(seed)
    wrong = (labels + generator.integers(1, K, len(labels))) % K
    return np.where(generator.random(len(labels)) < share, labels, wrong)


def verdict(with_source, *without, **facts):
    return source_verdict(
        LABELS, said(with_source), [said(*each) for each in without], "multiclass", K, **(FACTS | facts)
    )


@pytest.mark.parametrize(
    ("with_source", "without", "expected", "flagged"),
    [
        (0.9, 0.6, "positive", False),
        (0.6, 0.9, "negative transfer", True),
        (0.7, 0.7, "inconclusive", True),
    ],
)
def test_a_source_must_surely_gain_not_to_be_warned_of(with_source, without, expected, flagged):
    found = verdict(with_source, (without, 1), (without, 2), (without, 3))
    assert (found.verdict, found.flagged) == (expected, flagged)
    low, high = found.interval
    assert low <= found.gain <= high
    assert found.gain == pytest.approx(found.with_source - np.mean(found.without))


def test_lucky_draws_widen_the_interval():
    alike, apart = verdict(0.8, (0.7, 1), (0.7, 1)), verdict(0.8, (0.55, 1), (0.85, 1))
    width = [high - low for low, high in (alike.interval, apart.interval)]
    assert width[1] > 2 * width[0]
    assert alike.verdict == "positive"
    assert apart.verdict == "inconclusive"


@settings(deadline=None, max_examples=25)
@given(shares=st.tuples(st.floats(0.2, 1), st.floats(0.2, 1)), seed=st.integers(0, 99))
def test_turned_round_a_gain_is_a_loss(shares, seed):
    one, other = said(shares[0], seed), said(shares[1], seed + 1)
    there, back = (
        source_verdict(LABELS, first, [second], "multiclass", K, **FACTS)
        for first, second in ((one, other), (other, one))
    )
    assert there.gain == pytest.approx(-back.gain)
    assert there.interval == pytest.approx(tuple(-end for end in reversed(back.interval)), abs=0.02)


def test_several_labels_a_sample():
    labels = np.eye(K, dtype=np.int64)[LABELS]
    found = source_verdict(
        labels, np.eye(K, dtype=np.int64)[said(0.9)], [np.eye(K, dtype=np.int64)[said(0.5)]], "multilabel", K,
        **(FACTS | {"learned": None}),
    )  # fmt: skip
    assert (found.verdict, found.flagged) == ("positive", False)


def test_a_source_model_that_guesses_is_warned_of_even_where_its_layers_help():
    found = verdict(0.9, (0.6, 1), learned=False)
    assert (found.verdict, found.flagged) == ("positive", True)
    assert "check its labels" in found.sentence()


def test_one_sentence_says_it():
    positive = verdict(0.9, (0.6, 1))
    assert positive.sentence().startswith("the source task helps: +0.")
    assert "beside random weights, frozen and read at conv4" in positive.sentence()
    assert replace(positive, verdict="inconclusive").sentence().startswith("nothing shows that the source task helps")
    assert replace(positive, verdict="negative transfer").sentence().startswith("negative transfer: ")
    values = json.loads(json.dumps(positive.to_json()))
    assert (values["verdict"], values["flagged"], values["sentence"]) == ("positive", False, positive.sentence())


@pytest.mark.parametrize("answers", [lambda draw: draw.integers(0, K, 300), lambda draw: draw.integers(0, 2, 300)])
def test_who_guesses_seldom_passes_for_one_who_has_learned(answers):
    draw = np.random.default_rng(0)
    labels = draw.choice(K, 300, p=[0.5, 0.3, 0.1, 0.1])
    passed = sum(has_learned(confusion_matrix(labels, answers(draw), K)) for _ in range(500))
    assert passed <= 15  # 5 are expected


def test_who_has_learned_a_little_passes():
    assert has_learned(confusion_matrix(LABELS, said(0.4), K))  # guessing: 0.25
    assert has_learned(confusion_matrix(LABELS, LABELS, K))


def test_constant_answers_and_worse_than_chance_do_not_pass():
    assert not has_learned(confusion_matrix(LABELS, np.zeros_like(LABELS), K))
    assert not has_learned(confusion_matrix(LABELS, said(0.1), K))


@pytest.fixture(scope="module")
def blobs():
    """Rows of three classes in eight columns."""
    generator = np.random.default_rng(0)
    y = np.arange(390) % 3
    return 2 * generator.normal(size=(3, 8))[y] + 2 * generator.normal(size=(390, 8)), y.astype(str)


def run(tmp_path, source, target):
    np.savez(tmp_path / "source.npz", x=source[0], y=source[1])
    np.savez(tmp_path / "target.npz", x=target[0], y=target[1])
    config = {
        "source": {"data": str(tmp_path / "source.npz"), "backbone": "source_mlp", "epochs": 5},
        "data": str(tmp_path / "target.npz"),
        "search": {"trials": 1, "max_epochs": 2},
        "slots": "inline",
        "run_dir": str(tmp_path / "run"),
    }
    console = Console(file=io.StringIO(), width=120)
    found = search(config, console=console).result["source"]["verdict"]
    assert f"source: {found['sentence']}" in console.file.getvalue()
    return found


def test_a_run_judges_its_source_by_what_the_target_alone_has(tmp_path, blobs, monkeypatch):
    monkeypatch.setenv("AUTOML_TL_CACHE", str(tmp_path / "cache"))
    x, y = blobs
    shuffled = np.random.default_rng(1).permutation(y[:300])
    sources = {"good": (x[:300], y[:300]), "shuffled, in other units": (1e4 * x[:300] + 1e6, shuffled)}
    found = {}
    for name, source in sources.items():
        (tmp_path / name).mkdir()
        found[name] = run(tmp_path / name, source, (x[300:], y[300:]))
    good, bad = found.values()
    assert (good["learned"], bad["learned"], bad["flagged"]) == (True, False, True)
    assert (good["beside"], good["layer_group"]) == ("random weights", "layer3")
    assert len(good["without"]) == 5
    assert good["without"] == bad["without"]  # the source's units do not spoil what it is compared with
