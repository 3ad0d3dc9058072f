"""`TransferSearch`: the search as a scikit-learn classifier. The same run as `automl_tl.search`, on data in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import optuna
import pandas as pd
from PIL import Image
from rich.console import Console
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite, check_is_fitted, column_or_1d, validate_data

from automl_tl.config import RunConfig, validate
from automl_tl.data import inputs_from_python, task_from_python
from automl_tl.data.labelled import label_name
from automl_tl.engine.slots import INLINE
from automl_tl.host import Item
from automl_tl.model.spec import TrialSpec, spec_from_json
from automl_tl.plugin import Backbone, FreezingStrategy, Head
from automl_tl.report.live import Display
from automl_tl.run import TRANSFERRED, Run, run
from automl_tl.rundir import RunDirectory, new_run_directory
from automl_tl.search.space import Space, default_space
from automl_tl.search.study import open_storage
from automl_tl.serve.model import TrainedModel, load_model

Choice = str | Sequence[str | Item]


class TransferSearch(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Search what to transfer to `X, y`, and classify with the best model.

    `X` may be an array (N, D) of numbers, images (N, H, W[, C]) or (N, C, H, W), texts, a DataFrame, or a torch dataset
    of (sample, label) with `y=None`. A fifth of the samples is held back to choose by; score the estimator on data of
    your own that it has not seen.

    Parameters
    ----------
    backbones, strategies, heads
        "auto", or names and plugin objects to search over.
    space
        A function `(trial, context) -> TrialSpec`; None: the default space.
    n_trials, timeout
        How long to search: trials, seconds, whichever is first. Both None: ten minutes.
    slots
        Where trials run: "auto", a number, "cpu*2", "cuda:0*2", or "inline" for this process.
    metric
        What is maximized on validation samples: f1_macro, f1_micro, f1_weighted or f1_binary.
    max_epochs
        Most epochs of a trial.
    run_dir
        Where the run keeps everything; None: a temporary directory that is removed after `fit`.
    verbose
        0 shows nothing, 1 shows progress.
    random_state
        Seed of split, sampler and trials; None: a fresh one.

    Attributes
    ----------
    classes_ : the class labels, as in `y`
    study_ : the Optuna study
    best_spec_ : the `TrialSpec` of the best trial
    result_ : what `result.json` holds; its `test` is null
    model_ : the trained model
    """

    def __init__(
        self,
        *,
        backbones: Choice = "auto",
        strategies: Choice = "auto",
        heads: Choice = "auto",
        space: Space | None = None,
        n_trials: int | None = 20,
        timeout: float | None = None,
        slots: str | int = "auto",
        metric: str = "f1_macro",
        max_epochs: int = 20,
        run_dir: str | Path | None = None,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.backbones = backbones
        self.strategies = strategies
        self.heads = heads
        self.space = space
        self.n_trials = n_trials
        self.timeout = timeout
        self.slots = slots
        self.metric = metric
        self.max_epochs = max_epochs
        self.run_dir = run_dir
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, unlabeled: Any = None) -> Self:
        """Search on the samples `X` with labels `y`; raises ValueError or AutomlTlError when they cannot be used.

        `unlabeled` are further samples of the same kind as `X`, without labels, that probes learn from as well.
        """
        if y is None and not _is_dataset(X):
            raise ValueError("requires y to be passed, but the target y is None")
        X, y = self._checked(X, y)
        if unlabeled is not None and _is_numeric_table(unlabeled):
            unlabeled = validate_data(self, unlabeled, reset=False, dtype=np.float64)
        named, self.classes_ = _named_labels(y)
        config = self._config()
        task = task_from_python(
            X, named, config=config.data, seed=config.seed, hold_out_test=False, unlabeled=unlabeled
        )
        self._columns = None
        if y is None or named is None or isinstance(self.classes_, tuple):
            self.classes_ = np.asarray(task.classes)
        else:
            place = {name: index for index, name in enumerate(task.classes)}
            self._columns = np.array([place[label_name(label)] for label in self.classes_])
        with tempfile.TemporaryDirectory(prefix="automl-tl-") as temporary:
            wanted = Path(self.run_dir) if self.run_dir is not None else Path(temporary) / "run"
            directory = new_run_directory(wanted, "fit")
            story = Run(
                config=config,
                directory=directory,
                display=Display(Console(quiet=not self.verbose)),
                plugins=self._plugins(),
                space=self.space or default_space,
                task=task,
            )
            self.result_: dict[str, Any] = run(story)
            self.model_: TrainedModel = load_model(directory.model, plugins=story.plugins)
            self.study_ = _in_memory(directory)
        best = next(t for t in self.study_.trials if t.number == self.result_["best"]["trial"])
        self.best_spec_: TrialSpec = spec_from_json(best.user_attrs["spec"])
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (N, K), columns as in `classes_`."""
        check_is_fitted(self, "model_")
        if _is_numeric_table(X):
            X = validate_data(self, X, reset=False, dtype=np.float64)
        probabilities = self.model_.probabilities(inputs_from_python(X, self.model_.schema))
        return probabilities if self._columns is None else probabilities[:, self._columns]

    def predict(self, X: Any) -> np.ndarray:
        """The class of each sample; for several labels a sample, indicators (N, K)."""
        probabilities = self.predict_proba(X)
        if self.model_.kind == "multilabel":
            return (probabilities >= 0.5).astype(np.int64)
        chosen: np.ndarray = self.classes_[probabilities.argmax(1)]
        return chosen

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # Several slots propose in the order in which trials end, and a time limit cuts where it may.
        tags.non_deterministic = str(self.slots) not in (INLINE, "1") or self.timeout is not None
        tags.input_tags.string = True
        tags.classifier_tags.multi_label = True
        tags.classifier_tags.poor_score = True  # on a handful of rows
        return tags

    def _checked(self, X: Any, y: Any) -> tuple[Any, Any]:
        """scikit-learn's own validation of numeric tables; everything else is validated where it is read."""
        if y is not None and not _is_label_lists(y):
            y = y if isinstance(y, pd.DataFrame) else np.asarray(y)
            y = column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
            assert_all_finite(y, input_name="y")
            check_classification_targets(y)
        if not _is_numeric_table(X) or y is None:
            return X, y
        if _is_label_lists(y):
            return validate_data(self, X, dtype=np.float64), y
        checked: tuple[Any, Any] = validate_data(self, X, y, dtype=np.float64, multi_output=np.ndim(y) == 2)
        return checked[0], y if isinstance(y, pd.DataFrame) else checked[1]  # its columns name the classes

    def _config(self) -> RunConfig:
        state = self.random_state
        if state is None or isinstance(state, np.random.RandomState):
            state = int((state or np.random.RandomState()).randint(2**31 - 1))
        return validate(
            {
                "data": {"path": "python"},
                "search": {
                    "trials": self.n_trials,
                    "seconds": self.timeout,
                    "metric": self.metric,
                    "max_epochs": self.max_epochs,
                },
                "backbones": _names(self.backbones),
                "strategies": _names(self.strategies),
                "heads": _names(self.heads),
                "slots": self.slots,
                "seed": state,
            },
            "TransferSearch",
        )

    def _plugins(self) -> tuple[Item, ...]:
        given = [c for c in (self.backbones, self.strategies, self.heads) if not isinstance(c, str)]
        return tuple(item for choice in given for item in choice if not isinstance(item, str))


def _names(choice: Choice) -> list[str]:
    if isinstance(choice, str):
        return [choice]
    return [item.name if isinstance(item, Backbone | Head | FreezingStrategy) else item for item in choice]


def _named_labels(y: Any) -> tuple[Any, Any]:
    """Labels as names, and the labels they stand for; several labels a sample stay as they are."""
    if y is None or _is_label_lists(y) or np.ndim(y) == 2:
        return y, ()
    labels = np.asarray(y)
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ValueError(f"y holds one class, {str(classes[0])!r}; a classifier needs at least two")
    names = {label_name(label): label for label in classes}
    for label in classes:
        if names[label_name(label)] != label:
            raise ValueError(f"the labels {str(label)!r} and {str(names[label_name(label)])!r} of y read the same")
    return np.array([label_name(label) for label in labels]), classes


def _is_label_lists(y: Any) -> bool:
    """Whether y holds several labels a sample; numbers in lists of equal lengths are a matrix of indicators."""
    if not (isinstance(y, list | tuple) and len(y) > 0 and isinstance(y[0], list | tuple | set)):
        return False
    named = any(isinstance(row, set) or any(isinstance(label, str) for label in row) for row in y)
    return named or len({len(row) for row in y}) > 1


def _is_numeric_table(X: Any) -> bool:
    """Whether scikit-learn's rules for numeric tables apply: not to images, texts, frames with text, or datasets."""
    if isinstance(X, pd.DataFrame):
        return all(pd.api.types.is_numeric_dtype(dtype) for dtype in X.dtypes)
    if isinstance(X, pd.Series):
        return pd.api.types.is_numeric_dtype(X.dtype)
    if _is_dataset(X):
        return False
    if isinstance(X, list | tuple):
        return bool(X) and isinstance(X[0], list | tuple | int | float) and np.ndim(X[0]) <= 1 and not _has_others(X)
    kind = getattr(getattr(X, "dtype", None), "kind", "O")
    return getattr(X, "ndim", 2) <= 2 and (kind in "biufc" or not (isinstance(X, np.ndarray) and _has_others(X)))


def _has_others(cells: Any) -> bool:
    """Whether a text, path or picture is among the cells; of anything else scikit-learn says what is wrong with it."""
    rows = cells if isinstance(cells, list | tuple) else cells.ravel()
    return any(
        _has_others(cell) if isinstance(cell, list | tuple) else isinstance(cell, str | Path | np.ndarray | Image.Image)
        for cell in rows
    )


def _is_dataset(X: Any) -> bool:
    """A torch-like dataset: indexable, sized, and neither an array nor a sequence nor a frame."""
    indexable = hasattr(X, "__getitem__") and hasattr(X, "__len__")
    known = (
        isinstance(X, list | tuple | str | pd.DataFrame | pd.Series) or hasattr(X, "__array__") or hasattr(X, "toarray")
    )
    return indexable and not known


def _in_memory(directory: RunDirectory) -> optuna.Study:
    """A copy of the study that outlives the run directory and can be pickled."""
    storage = optuna.storages.InMemoryStorage()
    optuna.copy_study(
        from_study_name=TRANSFERRED,
        from_storage=open_storage(directory.database),
        to_storage=storage,
    )
    return optuna.load_study(study_name=TRANSFERRED, storage=storage)
