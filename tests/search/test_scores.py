"""The score of one tap: a probe of samples that are left out of its fit."""

import threading

import numpy as np
import pytest

from automl_tl.features.frozen import pooled_rows
from automl_tl.metrics.scores import validation_score
from automl_tl.probes.knn import knn_loo
from automl_tl.probes.ridge import fit_ridge
from automl_tl.search import scores as module
from automl_tl.search.scores import ScoreOrder, score_tap, subset
from automl_tl.search.survey import survey


@pytest.fixture
def order(make_picture_search, crew):
    """Return a function that makes the order of scoring one tap, of a network that all samples have passed."""
    search = make_picture_search()
    _, [score] = survey(search, crew, threading.Event(), lambda text: None, lambda what, done, n: None)

    def make(tap, **settings):
        facts = {
            "sources": search.host.sources,
            "sitting": search.clock.began,
            "backbone": "trained0",
            "network": score.passed.network,
            "files": search.prepared.files(search.host.backbone("trained0"), "train"),
            "tap": tap,
            "kind": "multiclass",
            "n_outputs": 10,
            "metric": "f1_macro",
            "seed": 0,
            "diagnose": False,
        }
        return ScoreOrder(**{**facts, **settings})

    make.host = search.host
    return make


@pytest.mark.parametrize("tap", [1, 3])
def test_a_score_is_the_probe_of_left_out_samples(order, tap):
    made = order(tap)
    backbone = order.host.backbone("trained0")
    split = made.files.open(backbone)
    features = pooled_rows(made.network, split.samples, [tap], module.POOLING).features()
    fit = fit_ridge(features, split.labels, "multiclass", 10)
    near = knn_loo(features, split.labels, "multiclass", 10)
    score = score_tap(made)
    assert score.group == backbone.layer_groups[tap - 1]
    assert (score.f1, score.log_loss) == pytest.approx((fit.score, fit.log_loss))
    assert score.knn == validation_score(split.labels, near, "multiclass", "f1_macro")
    assert score.interval[0] <= score.f1 <= score.interval[1]
    assert score.diagnostics == {}


def test_diagnostics_are_for_those_who_ask(order):
    plain, diagnosed = score_tap(order(2)), score_tap(order(2, diagnose=True))
    assert plain.diagnostics == {}
    assert set(diagnosed.diagnostics) == {"logme", "h_score", "gbc"}
    assert np.isfinite(list(diagnosed.diagnostics.values())).all()
    assert diagnosed.f1 == plain.f1


def test_large_tasks_are_scored_by_some_of_their_samples(order, monkeypatch):
    seen, fit = [], module.fit_ridge

    def fit_and_note(features, *others, **settings):
        seen.append(len(features))
        return fit(features, *others, **settings)

    monkeypatch.setattr(module, "MOST_ROWS", 30)
    monkeypatch.setattr(module, "fit_ridge", fit_and_note)
    assert 0 <= score_tap(order(3)).f1 <= 1
    assert seen == [30]


def test_a_part_has_the_classes_in_proportion_and_repeats():
    labels = np.repeat([0, 1, 2], [300, 90, 10])
    chosen = subset(labels, 100, 0, multilabel=False)
    assert len(chosen) == len(set(chosen.tolist())) == 100
    assert np.bincount(labels[chosen]).tolist() == pytest.approx([75, 22, 3], abs=1)
    assert np.array_equal(chosen, subset(labels, 100, 0, multilabel=False))
    assert not np.array_equal(chosen, subset(labels, 100, 1, multilabel=False))
    assert np.array_equal(subset(labels, 400, 0, multilabel=False), np.arange(400))


def test_a_part_of_samples_with_several_labels():
    labels = np.random.default_rng(0).integers(0, 2, (200, 4)).astype(np.float32)
    chosen = subset(labels, 50, 0, multilabel=True)
    assert abs(len(chosen) - 50) <= 2
    assert labels[chosen].any(0).all()
