from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl_tl.data.labelled import label_name, multi_hot, natural_order


@pytest.mark.parametrize(
    ("value", "name"),
    [(1, "1"), (1.0, "1"), (np.float32(2.0), "2"), (0.5, "0.5"), (True, "True"), (b"cat", "cat"), (" cat ", "cat")],
)
def test_label_names(value, name):
    assert label_name(value) == name


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["10", "9", "-1", "2.5"], ("-1", "2.5", "9", "10")),
        (["class10", "class9", "class1"], ("class1", "class9", "class10")),
        (["b", "a", "10", "9"], ("9", "10", "a", "b")),
    ],
)
def test_natural_order(names, ordered):
    assert natural_order(names) == ordered


@given(st.lists(st.text(max_size=5), max_size=12), st.randoms())
@settings(deadline=None, max_examples=50)
def test_the_order_does_not_depend_on_the_order_before(names, random):
    shuffled = list(names)
    random.shuffle(shuffled)
    assert natural_order(names) == natural_order(shuffled)
    assert set(natural_order(names)) == set(names)


def test_multi_hot():
    assert multi_hot([("a",), (), ("b", "a")], ("a", "b")).tolist() == [[1, 0], [0, 0], [1, 1]]
