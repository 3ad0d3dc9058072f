"""How much of a score is the seed's doing."""

import numpy as np
import pytest

from automl_tl.finish.seeds import Refits


def test_what_repeats_has_no_deviation_and_what_was_not_trained_again_an_unknown_one():
    assert Refits(repeats=True).deviation(np.array([0.7])) == 0
    assert (Refits(repeats=True).deviation(np.ones((1, 3))) == np.zeros(3)).all()
    assert Refits().deviation(np.array([0.7])) is None


def test_the_deviation_is_that_of_a_sample():
    refits = Refits(others=(None, None))
    assert refits.deviation(np.array([0.7, 0.8, 0.9])) == pytest.approx(0.1)
    assert refits.deviation(np.array([[0.7, 1.0], [0.8, 1.0], [0.9, 1.0]])) == pytest.approx([0.1, 0.0])
