from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest

from automl_tl.config import DataConfig
from automl_tl.data import load_task
from automl_tl.errors import DataError


def features(count=30, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "height": rng.normal(size=count),
            "rooms": rng.integers(1, 6, count),
            "color": rng.choice(["red", "blue"], count),
            "label": np.tile(["yes", "no", "maybe"], count)[:count],
        }
    )


def sentences(count=12):
    return pd.DataFrame(
        {
            "review": [f"this is the text with number {index}" for index in range(count)],
            "label": np.tile(["good", "bad"], count)[:count],
        }
    )


@pytest.fixture
def load(tmp_path):
    def load_frame(frame, seed=0, **settings):
        path = tmp_path / "data.csv"
        frame.to_csv(path, index=False)
        return load_task(DataConfig(path=str(path), **settings), seed=seed)

    return load_frame


def samples_of(task):
    return [*task.train.samples.ids, *task.validation.samples.ids, *task.test.open().samples.ids]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_task(tmp_path, suffix):
    frame, path = features(), tmp_path / f"data.{suffix}"
    write = {
        "csv": lambda: frame.to_csv(path, index=False),
        "tsv": lambda: frame.to_csv(path, index=False, sep="\t"),
        "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        "parquet": lambda: frame.to_parquet(path),
    }
    write[suffix]()
    task = load_task(DataConfig(path=str(path)), seed=0)
    assert (task.kind, task.classes, task.modality) == ("multiclass", ("maybe", "no", "yes"), "tabular")
    assert task.schema.feature_columns == ("height", "rooms", "color")
    assert task.schema.categorical_columns == ("color",)
    ids = task.train.samples.ids
    rows = frame.iloc[[int(name.split(":")[1]) - 1 for name in ids]]
    assert task.train.samples.frame["height"].to_numpy() == pytest.approx(rows["height"].to_numpy(), abs=1e-6)
    assert task.train.samples.frame["color"].tolist() == rows["color"].tolist()
    assert [task.classes[label] for label in task.train.labels] == rows["label"].tolist()


def test_a_text_column_is_found(load):
    task = load(sentences())
    assert (task.modality, task.kind, task.schema.input_column) == ("text", "binary", "review")
    assert task.train.samples.texts[0].startswith("this is the text")
    assert any("'label', by its name" in note for note in task.notes)
    assert any("'review'" in note for note in task.notes)


def test_short_strings_are_texts_when_they_are_the_only_mostly_distinct_column(load):
    frame = pd.DataFrame({"word": list("abcdefghijkl"), "y": [0, 1] * 6})
    assert load(frame).modality == "text"


def test_image_paths_are_relative_to_the_table(image_folder, tmp_path):
    image_folder("img", cat=3, dog=3)
    paths = [f"img/{name}/{index}.png" for name in ("cat", "dog") for index in range(3)]
    frame = pd.DataFrame({"file": paths, "label": ["cat"] * 3 + ["dog"] * 3})
    frame.to_csv(tmp_path / "pets.csv", index=False)
    task = load_task(DataConfig(path=str(tmp_path / "pets.csv")), seed=0)
    assert (task.modality, task.schema.input_column) == ("image", "file")
    assert sorted(samples_of(task)) == paths
    assert task.train.samples.pixels(0, 8).shape == (8, 8, 3)


def test_a_missing_image_file_is_named(tmp_path):
    frame = pd.DataFrame({"file": [f"{index}.png" for index in range(6)], "label": [0, 1] * 3})
    frame.to_csv(tmp_path / "pets.csv", index=False)
    with pytest.raises(DataError, match=r"the image .*0\.png cannot be read"):
        load_task(DataConfig(path=str(tmp_path / "pets.csv")), seed=0)


def test_the_last_column_is_the_label_when_it_has_few_values(load):
    task = load(features().rename(columns={"label": "verdict"}))
    assert task.classes == ("maybe", "no", "yes")
    assert any("'verdict'" in note and "last" in note for note in task.notes)


def test_a_label_that_is_not_plain_lists_the_columns(load):
    frame = features()[["label", "color", "height"]].rename(columns={"label": "verdict"})
    with pytest.raises(DataError, match=r"name it with --label .*Columns: verdict, color, height"):
        load(frame)


def test_the_label_can_be_named_and_a_wrong_name_is_corrected(load):
    assert load(features(), label="color").classes == ("blue", "red")
    with pytest.raises(DataError, match=r"has no column 'colour' \(data.label\).*Did you mean 'color'\?"):
        load(features(), label="colour")


def test_whole_floats_are_integer_classes_in_numeric_order(load):
    frame = features().assign(label=np.tile([10.0, 9.0, 1.0], 10))
    assert load(frame).classes == ("1", "9", "10")


def test_words_that_pandas_takes_for_missing_are_labels(load):
    assert load(features().assign(label=np.tile(["None", "some", "all"], 10))).classes == ("None", "all", "some")


def test_two_classes_are_binary_and_bool_columns_categories(load):
    frame = features().assign(label=[True, False] * 15, garden=[True, False, False] * 10)
    task = load(frame)
    assert (task.kind, task.classes) == ("binary", ("False", "True"))
    assert task.schema.categorical_columns == ("color", "garden")
    assert set(task.train.samples.frame["garden"]) == {"True", "False"}


def test_an_id_column_is_left_out(load):
    frame = features()
    frame.insert(0, "ID", range(len(frame)))
    task = load(frame)
    assert "ID" not in task.schema.feature_columns
    assert any("'ID'" in note for note in task.notes)


def test_dropped_columns_are_no_features(load):
    assert load(features(), drop=("rooms",)).schema.feature_columns == ("height", "color")
    with pytest.raises(DataError, match=r"no column 'room' \(data.drop\).*Did you mean 'rooms'"):
        load(features(), drop=("room",))


def test_no_input_column_left_is_an_error(load):
    with pytest.raises(DataError, match="no input columns"):
        load(features(), drop=("height", "rooms", "color"))


@pytest.mark.parametrize("other", ["height", "image"])
def test_mixed_modalities_name_the_remedy(load, other):
    frame = sentences()
    frame[other] = 1.5 if other == "height" else "a.png"
    with pytest.raises(DataError, match=r"mixed modalities.*data\.input: review.*data\.drop: \[review"):
        load(frame)
    assert load(frame, input="review").modality == "text"
    if other == "height":
        assert load(frame, drop=("review",)).modality == "tabular"


def test_strings_that_are_neither_category_nor_text_name_the_remedy(load):
    frame = features().assign(ticket=[f"t{index}" for index in range(30)])
    with pytest.raises(DataError, match=r"'ticket' .* 30 distinct strings in 30 rows.*data\.drop: \[ticket\]"):
        load(frame)


def test_the_input_must_hold_strings(load):
    with pytest.raises(DataError, match=r"'height' .* must hold texts or image paths"):
        load(features(), input="height")


def test_a_contradicted_modality_is_an_error(load):
    with pytest.raises(DataError, match=r"looks tabular, but data.modality says 'image'"):
        load(features(), modality="image")


@pytest.mark.parametrize(("value", "message"), [(np.nan, "has nan in column 'height'"), (np.inf, "has inf in column")])
def test_values_that_are_not_finite_are_named_or_skipped(load, value, message):
    frame = features()
    frame.loc[[4, 9], "height"] = value
    with pytest.raises(DataError, match=rf"row 5 of .*data.csv {message}.*\(and 1 more\).*on_bad_sample: skip"):
        load(frame)
    task = load(frame, on_bad_sample="skip")
    assert len(samples_of(task)) == 28
    assert any("2 of 30 samples" in note and "row 5" in note for note in task.notes)


@pytest.mark.parametrize("column", ["color", "label"])
def test_missing_cells_are_named_or_skipped(load, column):
    frame = features()
    frame.loc[2, column] = None
    with pytest.raises(DataError, match=rf"row 3 of .*data.csv has no (value|label) in (column )?'{column}'"):
        load(frame)
    assert len(samples_of(load(frame, on_bad_sample="skip"))) == 29


def test_a_missing_text_is_named(load):
    frame = sentences()
    frame.loc[0, "review"] = None
    with pytest.raises(DataError, match=r"row 1 of .* has no value in column 'review'"):
        load(frame)


def test_labels_are_separated(load):
    frame = features(40).assign(label=np.tile(["red;round", "red", "round; big", "big"], 10))
    task = load(frame, label_separator=";")
    assert (task.kind, task.classes) == ("multilabel", ("big", "red", "round"))
    assert task.train.labels.dtype == np.float32
    assert task.train.labels.shape == (len(task.train), 3)
    total = task.train.labels.sum(axis=0) + task.validation.labels.sum(axis=0) + task.test.open().labels.sum(axis=0)
    assert total.tolist() == [20, 20, 20]


def test_lists_of_labels_in_jsonl_are_multilabel(tmp_path):
    frame = features(40).assign(label=[["a", "b"], ["a"], [], ["b"]] * 10)
    frame.to_json(tmp_path / "data.jsonl", orient="records", lines=True)
    assert load_task(DataConfig(path=str(tmp_path / "data.jsonl")), seed=0).kind == "multilabel"


def test_groups_stay_together_and_are_no_feature(load):
    frame = features(60).assign(patient=np.repeat(np.arange(10), 6))
    task = load(frame, group="patient", drop=("color",))
    assert task.schema.feature_columns == ("height", "rooms")
    parts = [task.train, task.validation, task.test.open()]
    groups = [{(int(name.split(":")[1]) - 1) // 6 for name in part.samples.ids} for part in parts]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 10
    assert all(groups)


def test_a_missing_group_column_is_corrected(load):
    with pytest.raises(DataError, match=r"no column 'colr' \(data.group\).*Did you mean 'color'"):
        load(features(), group="colr")


def test_only_some_classes_can_be_kept(load):
    task = load(features(), classes=("yes", "no"))
    assert task.classes == ("no", "yes")
    assert len(samples_of(task)) == 20
    with pytest.raises(DataError, match=r"data.classes names 'yess'.*Did you mean 'yes'"):
        load(features(), classes=("yess", "no"))


def test_a_cap_on_each_class_leaves_test_alone(load):
    free, capped = load(features(90)), load(features(90), per_class=5)
    assert samples_of(free)[-len(free.test) :] == list(samples_of(capped)[-len(capped.test) :])
    pool = np.concatenate([capped.train.labels, capped.validation.labels])
    assert np.bincount(pool).tolist() == [5, 5, 5]
    with pytest.raises(DataError, match=r"data.per_class is 1"):
        load(features(90), per_class=1)


def test_a_constant_label_is_an_error(load):
    with pytest.raises(DataError, match=r"is constant \(yes\); at least 2 classes"):
        load(features().assign(label="yes"))


def test_a_class_too_small_to_split_is_counted(load):
    frame = features()
    frame.loc[0, "label"] = "rare"
    with pytest.raises(DataError, match=r"class 'rare' of .* has 1 sample, at least 3 are needed to split into train"):
        load(frame)


@pytest.fixture
def directory(tmp_path):
    features(30).to_csv(tmp_path / "train.csv", index=False)
    features(9, seed=1).to_csv(tmp_path / "test.csv", index=False)
    return tmp_path


def test_a_directory_of_tables_has_given_splits(directory):
    task = load_task(DataConfig(path=str(directory)), seed=0)
    assert (len(task.train), len(task.validation), len(task.test)) == (24, 6, 9)
    features(6).to_csv(directory / "validation.csv", index=False)
    task = load_task(DataConfig(path=str(directory)), seed=0)
    assert (len(task.train), len(task.validation), len(task.test)) == (30, 6, 9)


def test_a_second_table_can_be_the_test_split(directory):
    config = DataConfig(path=str(directory / "train.csv"), test=str(directory / "test.csv"))
    assert len(load_task(config, seed=0).test) == 9


def test_two_samples_a_class_are_enough_when_test_is_given(directory):
    frame = features(30)
    frame.loc[0, "label"] = "rare"
    frame.to_csv(directory / "train.csv", index=False)
    with pytest.raises(DataError, match=r"class 'rare' .* at least 2 are needed to split into train and validation;"):
        load_task(DataConfig(path=str(directory)), seed=0)
    frame.loc[1, "label"] = "rare"
    frame.to_csv(directory / "train.csv", index=False)
    assert "rare" in load_task(DataConfig(path=str(directory)), seed=0).classes


def test_a_test_label_never_seen_in_train_is_named(directory):
    features(9).assign(label="zebra").to_csv(directory / "test.csv", index=False)
    with pytest.raises(DataError, match=r"the label 'zebra' of the test split .* never seen"):
        load_task(DataConfig(path=str(directory)), seed=0)


def test_columns_that_test_lacks_are_named(directory):
    features(9).drop(columns=["rooms", "color"]).to_csv(directory / "test.csv", index=False)
    with pytest.raises(DataError, match=r"test\.csv lacks the columns 'rooms', 'color'"):
        load_task(DataConfig(path=str(directory)), seed=0)


def test_a_group_in_two_given_splits_is_named(directory):
    for name, count in (("train", 30), ("test", 9)):
        features(count).assign(patient=np.arange(count) // 3).to_csv(directory / f"{name}.csv", index=False)
    with pytest.raises(DataError, match=r"the group '0' lies in the (train|validation) and in the test split"):
        load_task(DataConfig(path=str(directory), group="patient"), seed=0)


@pytest.mark.parametrize("text", ["", "a,label\n"])
def test_an_empty_table_is_an_error(tmp_path, text):
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(DataError, match=r"data\.csv is empty"):
        load_task(DataConfig(path=str(tmp_path / "data.csv")), seed=0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.csv", b"a,b\n1,2,3\n4\n1,2,3,4,5\n"),
        ("data.csv", b"a\xff\xfe\x00,b\n"),
        ("data.jsonl", b"{"),
        ("data.parquet", b"PAR"),
    ],
)
def test_a_corrupt_table_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"the table .*{name} (cannot be read|is empty)"):
        load_task(DataConfig(path=str(tmp_path / name)), seed=0)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    for name in ("pyarrow", "pyarrow.parquet", "fastparquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=r"pip install automl-tl\[parquet\]"):
        load_task(DataConfig(path=str(tmp_path / "data.parquet")), seed=0)


def test_dates_name_the_remedy(tmp_path):
    features().assign(day=pd.Timestamp("2024-01-01")).to_parquet(tmp_path / "data.parquet")
    with pytest.raises(DataError, match=r"column 'day' .*data\.drop: \[day\]"):
        load_task(DataConfig(path=str(tmp_path / "data.parquet")), seed=0)


@pytest.mark.parametrize(
    ("cells", "later"),
    [
        (["true", "false", "unknown"], ["true", "false"]),
        (["01", "1A", "2"], ["01", "2"]),
        (["29.0", "?", "30.0"], ["29.0"]),
    ],
)
def test_the_same_cell_is_the_same_category_in_every_file(directory, cells, later):
    features().assign(kind=np.resize(cells, 30)).to_csv(directory / "train.csv", index=False)
    features(9, seed=1).assign(kind=np.resize(later, 9)).to_csv(directory / "test.csv", index=False)
    task = load_task(DataConfig(path=str(directory), label="label"), seed=0)
    assert set(task.train.samples.frame["kind"]) == set(cells)
    assert set(task.test.open().samples.frame["kind"]) == set(later)


def test_a_label_is_the_same_number_in_every_file(directory):
    features().assign(label=np.resize([0.0, 1.0], 30)).to_csv(directory / "train.csv", index=False)
    features(9, seed=1).assign(label=np.resize([0, 1], 9)).to_csv(directory / "test.csv", index=False)
    task = load_task(DataConfig(path=str(directory)), seed=0)
    assert task.classes == ("0", "1")


def test_codes_are_labels_as_they_are_written(load):
    assert load(features().assign(label=np.resize(["007", "01"], 30))).classes == ("01", "007")


def test_numbers_beside_a_stray_word_are_named(load):
    frame = features().assign(rooms=[*map(str, range(1, 10)), "?"] * 3)
    notes = "\n".join(load(frame).notes)
    assert "The column 'rooms' holds numbers beside '?' and is read as categories" in notes
    assert "1 numeric and 2 categorical columns: rooms, color." in notes
