from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl_tl.data.encoder import TableEncoder
from automl_tl.errors import DataError


@pytest.fixture
def frame():
    return pd.DataFrame({"a": [1.0, 2.0, 3.0], "color": ["red", "blue", "red"], "b": [5.0, 5.0, 5.0]})


def test_numbers_are_standardized_and_categories_one_hot(frame):
    encoder = TableEncoder.fit(frame, ["color"])
    encoded = encoder.transform(frame)
    assert encoded.dtype == np.float32
    assert encoded.shape == (3, encoder.width) == (3, 4)
    assert encoded[:, 0] == pytest.approx([-1.2247449, 0, 1.2247449])
    assert (encoded[:, 1] == 0).all()  # constant
    assert encoded[:, 2:].tolist() == [[0, 1], [1, 0], [0, 1]]


def test_an_unknown_category_is_all_zeros(frame):
    encoder = TableEncoder.fit(frame, ["color"])
    other = frame.assign(color=["green", "blue", "red"])
    assert encoder.transform(other)[0, 2:].tolist() == [0, 0]


def test_columns_may_come_in_another_order_and_with_more(frame):
    encoder = TableEncoder.fit(frame, ["color"])
    other = frame.assign(more=1)[["more", "color", "b", "a"]]
    assert np.array_equal(encoder.transform(other), encoder.transform(frame))


def test_missing_columns_are_named(frame):
    with pytest.raises(DataError, match=r"lacks the columns 'a', 'color'.*got 'b'"):
        TableEncoder.fit(frame, ["color"]).transform(frame[["b"]])


def test_a_column_without_numbers_is_named(frame):
    with pytest.raises(DataError, match="column 'a' must hold numbers"):
        TableEncoder.fit(frame, ["color"]).transform(frame.assign(a=["x", "y", "z"]))


def test_json_round_trip(frame):
    encoder = TableEncoder.fit(frame, ["color"])
    assert TableEncoder.from_json(json.loads(json.dumps(encoder.to_json()))) == encoder


def test_the_constant_column_needs_no_exact_mean():
    values = pd.DataFrame({"a": [0.1] * 7})
    assert np.abs(TableEncoder.fit(values, []).transform(values)).max() < 1e-6


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
@settings(deadline=None, max_examples=40)
def test_encoded_training_rows_have_mean_zero_and_deviation_one_or_zero(values):
    frame = pd.DataFrame({"a": values})
    encoded = TableEncoder.fit(frame, []).transform(frame).astype(float)
    assert abs(encoded.mean()) < 1e-2
    assert encoded.std() == pytest.approx(1, abs=1e-2) or encoded.std() < 1e-2
