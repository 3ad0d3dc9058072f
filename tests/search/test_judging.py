"""Who judges: every division is fair, and scores on different holdouts compare."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl_tl.errors import TrialError
from automl_tl.features.task import Development
from automl_tl.metrics.scores import validation_score
from automl_tl.search.judging import SAID, Said, comparable_score, divide, load_said, save_said

N, K = 300, 3
DRAWS = 60


def development(labels, *, groups=None, n_given=0, fraction=0.2):
    """Development samples of which the user gave the last `n_given` to validate by."""
    n_train = len(labels) - n_given
    given = np.arange(n_train, len(labels)) if n_given else None
    return Development(labels=labels, groups=groups, given=given, n_train=n_train, fraction=fraction)


def balanced(n=N, n_classes=K):
    return np.arange(n) % n_classes


def one_hot(classes, n_classes=K):
    return np.eye(n_classes, dtype=np.float32)[classes]


def err(labels, wrong, rng, n_classes=K):
    """Predictions that are another class where `wrong`."""
    return np.where(wrong, (labels + rng.integers(1, n_classes, len(labels))) % n_classes, labels)


def score(labels, said, rows, metric="f1_macro"):
    return validation_score(labels[rows], said[rows], "multiclass", metric)


# Divisions.


def test_a_validation_split_that_the_user_gave_judges_whatever_is_drawn():
    samples = development(balanced(), n_given=60)
    for draw in (0, 1, 12345):
        learn, judge = divide(samples, draw, multilabel=False)
        assert np.array_equal(learn, np.arange(240))
        assert np.array_equal(judge, np.arange(240, 300))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(2, 6), st.sampled_from([0.1, 0.2, 0.4]))
def test_a_division_is_of_all_samples_and_holds_a_share_of_every_class_out(draw, n_classes, fraction):
    labels = balanced(120, n_classes)
    learn, judge = divide(development(labels, fraction=fraction), draw, multilabel=False)
    assert np.array_equal(np.sort(np.concatenate([learn, judge])), np.arange(120))
    counts = np.bincount(labels[judge], minlength=n_classes)
    assert np.all(np.abs(counts - fraction * np.bincount(labels)) <= 1)


def test_every_draw_is_another_division_and_always_the_same():
    samples = development(balanced())
    judges = [divide(samples, draw, multilabel=False)[1] for draw in range(8)]
    assert all(not np.array_equal(judges[0], other) for other in judges[1:])
    assert np.array_equal(judges[3], divide(samples, 3, multilabel=False)[1])
    assert len(np.unique(np.concatenate(judges))) > 0.7 * N  # none of them is left out for good


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(2, 5))
def test_what_belongs_together_stays_on_one_side(draw, size):
    groups = np.arange(N) // size
    labels = (groups + np.arange(N) % 2) % K
    learn, judge = divide(development(labels, groups=groups), draw, multilabel=False)
    assert not set(groups[learn]) & set(groups[judge])
    assert len(learn) + len(judge) == N
    assert 0.1 * N < len(judge) < 0.35 * N


def test_samples_of_several_labels_are_divided_too():
    labels = np.random.default_rng(0).integers(0, 2, (N, 4))
    learn, judge = divide(development(labels), 1, multilabel=True)
    assert np.array_equal(np.sort(np.concatenate([learn, judge])), np.arange(N))
    assert np.all(labels[judge].sum(0) > 0)


# Scores that compare.


def draw_scores(labels, said, yardstick, metric, draws=DRAWS):
    """The plain and the comparable score of each of many holdouts."""
    samples, every = development(labels), np.arange(len(labels))
    plain, comparable = [], []
    for draw in range(draws):
        _, judge = divide(samples, draw, multilabel=False)
        plain.append(score(labels, said, judge, metric))
        kept = Said(judge, said[judge])
        comparable.append(comparable_score(plain[-1], kept, Said(every, yardstick), labels, "multiclass", metric))
    return np.array(plain), np.array(comparable)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.floats(0.05, 0.5), st.floats(0.05, 0.5), st.sampled_from(["f1_macro", "f1_micro"]))
def test_over_many_holdouts_the_comparable_score_is_that_of_all_samples(seed, error, yardsticks_error, metric):
    """However good the yardstick is, and whatever it errs on: it moves single scores, and not their mean."""
    rng, labels = np.random.default_rng(seed), balanced()
    said = one_hot(err(labels, rng.random(N) < error, rng))
    yardstick = one_hot(err(labels, rng.random(N) < yardsticks_error, rng))
    _, comparable = draw_scores(labels, said, yardstick, metric)
    standard_error = comparable.std(ddof=1) / np.sqrt(DRAWS)
    curvature = 0.0 if metric == "f1_micro" else 0.006  # of F1: a ratio, whose mean is not that of all samples
    assert abs(comparable.mean() - score(labels, said, np.arange(N), metric)) < 4.5 * standard_error + curvature


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.floats(0.1, 0.4), st.floats(0.0, 0.12))
def test_where_both_err_on_the_same_samples_it_varies_less(seed, error, apart):
    """What is hard is hard for both; `apart` is the share of the errors that only one of them makes."""
    rng, labels = np.random.default_rng(seed), balanced()
    hard = rng.random(N) < error
    wrong = [np.where(rng.random(N) < apart * error, ~hard, hard) for _ in range(2)]
    said, yardstick = (one_hot(err(labels, each, rng)) for each in wrong)
    plain, comparable = draw_scores(labels, said, yardstick, "f1_macro")
    assert comparable.std() < plain.std()


def test_a_holdout_that_is_easy_is_no_merit():
    """The same model, judged by samples that nearly all are easy, and by some that mostly are hard."""
    rng, labels, every = np.random.default_rng(0), balanced(), np.arange(N)
    hard = rng.random(N) < 0.3
    said = one_hot(err(labels, hard, rng))
    overall = score(labels, said, every)
    for n_hard in (5, 40):
        judge = np.concatenate([np.flatnonzero(hard)[:n_hard], np.flatnonzero(~hard)[: 60 - n_hard]])
        plain = score(labels, said, judge)
        found = comparable_score(plain, Said(judge, said[judge]), Said(every, said), labels, "multiclass", "f1_macro")
        assert abs(plain - overall) > 0.1
        assert found == pytest.approx(overall)


def test_no_score_is_above_one():
    labels, every, judge = balanced(), np.arange(N), np.arange(60)
    wrong = one_hot(np.where(every < 60, (labels + 1) % K, labels))
    said = Said(judge, one_hot(labels[judge]))
    assert comparable_score(1.0, said, Said(every, wrong), labels, "multiclass", "f1_macro") == 1.0


def test_several_labels_a_sample_compare_as_well():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (N, 4))
    said = np.abs(labels - (rng.random((N, 4)) < 0.2)).astype(np.float32)
    judge = np.arange(0, N, 5)
    plain = validation_score(labels[judge], said[judge], "multilabel", "f1_macro")
    overall = validation_score(labels, said, "multilabel", "f1_macro")
    yardstick = Said(np.arange(N), said)
    found = comparable_score(plain, Said(judge, said[judge]), yardstick, labels, "multilabel", "f1_macro")
    assert found == pytest.approx(overall)


@pytest.mark.parametrize(
    ("rows", "yardsticks"),
    [
        (np.arange(60), None),  # there is none
        (np.arange(N), np.arange(N)),  # judged by all samples itself
        (np.arange(60), np.arange(60)),  # all are judged by the same ones, which the user gave
        (np.arange(60), np.arange(30, 300)),  # the yardstick says nothing of some
    ],
)
def test_a_score_that_nothing_is_known_against_stays_what_it_is(rows, yardsticks):
    rng, labels = np.random.default_rng(0), balanced()
    yardstick = None
    if yardsticks is not None:
        yardstick = Said(yardsticks, one_hot(rng.integers(0, K, len(yardsticks))))
    said = Said(rows, one_hot(labels[rows]))
    assert comparable_score(0.625, said, yardstick, labels, "multiclass", "f1_macro") == 0.625


def test_the_yardsticks_rows_may_come_in_any_order():
    rng, labels = np.random.default_rng(0), balanced()
    judge, order = np.arange(60), rng.permutation(N)
    yardstick = one_hot(err(labels, rng.random(N) < 0.3, rng))
    said = Said(judge, yardstick[judge])
    sorted_, shuffled = (
        comparable_score(0.5, said, Said(rows, yardstick[rows]), labels, "multiclass", "f1_macro")
        for rows in (np.arange(N), order)
    )
    assert sorted_ == shuffled != 0.5


# On disk.


def test_what_was_said_is_found_again(tmp_path):
    rng = np.random.default_rng(0)
    rows, probabilities = np.array([3, 1, 7]), rng.dirichlet(np.ones(4), 3)
    save_said(tmp_path, Said(rows, probabilities))
    save_said(tmp_path, Said(rows, probabilities))  # a trial that is repeated says it again
    found = load_said(tmp_path)
    assert np.array_equal(found.rows, rows)
    assert found.probabilities.dtype == np.float32
    np.testing.assert_allclose(found.probabilities, probabilities, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == [SAID]


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 and then nothing"])
def test_what_is_missing_or_damaged_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / SAID).write_bytes(content)
    with pytest.raises(TrialError, match=r"said\.npz is missing or damaged .*; delete the trial's folder"):
        load_said(tmp_path)
