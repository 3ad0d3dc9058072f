from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits, load_wine

from automl_tl.data import ImageSamples, TableSamples, TextSamples
from automl_tl.data.digests import CHUNK, digest_samples
from automl_tl.errors import DataError


def named(n):
    return tuple(f"sample {index}" for index in range(n))


def of_images(*sources, value_range=(0.0, 255.0)):
    return digest_samples(ImageSamples(sources=sources, ids=named(len(sources)), value_range=value_range))


def of_texts(*texts):
    return digest_samples(TextSamples(texts=texts, ids=named(len(texts))))


def of_table(**columns):
    frame = pd.DataFrame(columns)
    return digest_samples(TableSamples(frame=frame, ids=named(len(frame))))


def same(one, other):
    return [bool((a == b).all()) for a, b in zip(one, other, strict=True)]


def all_differ(digests):
    return len({row.tobytes() for row in digests}) == len(digests)


def kinds():
    digits = tuple(load_digits().images[:20])
    yield ImageSamples(sources=digits, ids=named(20), value_range=(0.0, 16.0))
    yield TextSamples(texts=tuple(f"text {number}" for number in range(8)), ids=named(8))
    yield TableSamples(frame=load_wine(as_frame=True).data, ids=named(178))


@pytest.mark.parametrize("samples", list(kinds()), ids=lambda samples: samples.modality)
def test_the_digest_is_of_the_sample_and_of_nothing_around_it(samples):
    digests = digest_samples(samples)
    assert digests.shape == (len(samples), 16)
    assert digests.dtype == np.uint8
    assert all_differ(digests)
    picked = [5, 0, 5, 3]
    taken = samples.take(picked)
    renamed = replace(taken, ids=tuple("abcd"))
    assert np.array_equal(digest_samples(renamed), digests[picked])
    assert digest_samples(samples.take([])).shape == (0, 16)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=3), max_size=20))
def test_texts_have_equal_digests_exactly_when_they_are_equal(texts):
    digests = [row.tobytes() for row in of_texts(*texts)]
    assert len(set(digests)) == len(set(texts))
    assert [digests.index(digest) for digest in digests] == [texts.index(text) for text in texts]


def test_a_text_that_is_no_valid_unicode_has_a_digest():
    assert all_differ(of_texts("\ud800", "\ud801", "?"))


def test_an_image_file_is_its_bytes_wherever_it_lies(tmp_path):
    (tmp_path / "a.png").write_bytes(b"one")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.jpg").write_bytes(b"one")
    (tmp_path / "c.png").write_bytes(b"two")
    a, b, c = of_images(tmp_path / "a.png", tmp_path / "elsewhere" / "b.jpg", tmp_path / "c.png")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    os.utime(tmp_path / "a.png", ns=(1, 1))
    assert same(of_images(tmp_path / "a.png"), [a]) == [True]
    (tmp_path / "a.png").write_bytes(b"three")
    assert same(of_images(tmp_path / "a.png"), [a]) == [False]


def test_many_files_keep_their_order(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(2 * CHUNK + 3)]
    for index, path in enumerate(paths):
        path.write_bytes(str(index).encode())
    digests = of_images(*paths)
    assert all_differ(digests)
    assert np.array_equal(digests[[0, CHUNK, 2 * CHUNK + 2]], of_images(paths[0], paths[CHUNK], paths[-1]))


def test_a_file_that_vanished_is_named(tmp_path):
    (tmp_path / "here.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"the image .*gone\.png cannot be read: No such file or directory; restore it"):
        of_images(tmp_path / "here.png", tmp_path / "gone.png")


def test_an_image_array_is_its_values_form_and_range():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    others = (image + 1, image.reshape(4, 3), image.astype(np.float32), image.astype(np.int8))
    assert all_differ(of_images(image, *others))
    assert same(of_images(image), of_images(np.asfortranarray(image))) == [True]
    assert same(of_images(image), of_images(image[::-1][::-1])) == [True]
    assert same(of_images(image), of_images(image, value_range=(0, 255))) == [True]
    assert same(of_images(image), of_images(image, value_range=(0.0, 16.0))) == [False]


def test_kinds_of_samples_are_told_apart(tmp_path):
    (tmp_path / "a.png").write_bytes(b"abc")
    assert all_differ(np.concatenate([of_images(tmp_path / "a.png"), of_texts("abc")]))


def test_a_row_is_its_values_and_the_names_of_its_columns():
    row = of_table(a=[1.0], b=[2.0], c=["x"])
    assert same(row, of_table(a=[1.0], b=[2.0], c=["x"])) == [True]
    others = [
        of_table(a=[2.0], b=[1.0], c=["x"]),
        of_table(a=[1.0], d=[2.0], c=["x"]),
        of_table(a=[1.0], b=[2.0]),
        of_table(a=[1.0], b=[2.0], c=["y"]),
        of_table(a=[1.0], b=[2.0], c=["x"], d=["x"]),
    ]
    assert all_differ(np.concatenate([row, *others]))


def test_values_of_a_row_keep_their_types_and_places():
    assert all_differ(np.concatenate([of_table(a=[1.0]), of_table(a=["1.0"]), of_table(a=["1"])]))
    assert all_differ(of_table(a=["x", "xy", '["', "null", None], b=["yz", "z", '"]', "null", None]))


def test_numbers_that_compare_equal_are_equal_whatever_holds_them():
    expected = of_table(a=[1.0, 0.0])
    for values in ([1, 0], [1.0, -0.0], np.array([1, 0], dtype=np.int8), pd.array([1, 0], dtype="Int64")):
        assert same(expected, of_table(a=values)) == [True, True]


def test_what_is_missing_is_one_value_and_not_zero():
    other_nan = np.array([0x7FF8000000000001], dtype=np.uint64).view(np.float64)[0]
    missing, again, zero = of_table(a=[np.nan, other_nan, 0.0])
    assert np.array_equal(missing, again)
    assert not np.array_equal(missing, zero)
    none, nan, text = of_table(a=pd.Series([None, np.nan, "nan"], dtype=object))
    assert np.array_equal(none, nan)
    assert not np.array_equal(none, text)


def test_objects_without_a_word_in_json_are_told_from_strings():
    day = pd.Timestamp("2026-01-01")
    assert all_differ(of_table(a=pd.Series([day, str(day), pd.Timestamp("2026-01-02")], dtype=object)))


def test_columns_of_one_name_all_count():
    def twice(first, second):
        frame = pd.DataFrame([[first, second]], columns=["a", "a"])
        return digest_samples(TableSamples(frame=frame, ids=named(1)))

    assert all_differ(np.concatenate([twice(1.0, 2.0), twice(1.0, 3.0), twice(2.0, 1.0)]))
