"""The configuration of a run: what YAML, `--set a.b=c` and the Python API all become.

Strict: an unknown key is a mistake, and all mistakes are reported at once, each with its path and the nearest known
key. Nothing here opens data or loads a plugin.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from automl_tl.errors import ConfigError, closest

Scalar = str | int | float | bool | None
Metric = Literal["f1_macro", "f1_micro", "f1_weighted", "f1_binary"]
Scheduler = Literal["promotion", "one_epoch", "hyperband", "none"]
FinishModel = Literal["auto", "single", "soup", "ensemble"]
DEFAULT_SECONDS = 600.0
LITERAL = "label_separator"  # --set takes its value letter by letter: most separators mean something in YAML


def _one_name_or_many(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_one_name_or_many)]
AUTO: tuple[str, ...] = ("auto",)


class Section(BaseModel):
    """Settings shared by all sections: no unknown keys, no change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Section):
    """A labelled task: where its samples lie and how they are read and split."""

    path: str  # a folder of images, a table, an .npz, a directory with train.* and test.*, or sklearn:NAME
    test: str | None = None  # a second path, held back as the test split
    label: str | None = None  # the label column of a table
    input: str | None = None  # the column of texts or image paths; None: inferred
    modality: Literal["image", "text", "tabular"] | None = None  # None: inferred
    group: str | None = None  # samples that share this column's value stay in one split
    label_separator: Annotated[str, Field(min_length=1)] | None = None  # several labels a sample, as in "red;round"
    unlabeled: str | None = None  # a path of further samples without labels, of the same kind as those of `path`
    classes: Names | None = None  # keep only the samples of these classes
    drop: Names = ()  # columns of a table that are no features
    per_class: Annotated[int, Field(ge=1)] | None = None  # keep at most so many training samples a class
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2  # of what is not test
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2  # of everything, when no test split is given
    image_size: Annotated[int, Field(ge=8)] | None = None  # pixels a side; None: from the images
    on_bad_sample: Literal["error", "skip"] = "error"

    @field_validator("classes", mode="before")
    @classmethod
    def _class_names_are_text(cls, value: object) -> object:
        return [str(item) for item in value] if isinstance(value, list | tuple) else value


def _path_is_a_task(value: object) -> object:
    return {"path": str(value)} if isinstance(value, str | Path) else value


TaskData = Annotated[DataConfig, BeforeValidator(_path_is_a_task)]


class SourceConfig(Section):
    """The source task: its model's layers are what the target search transfers."""

    data: TaskData
    backbone: str
    epochs: Annotated[int, Field(ge=1)] = 30
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    batch_size: Annotated[int, Field(ge=1)] = 64

    @field_validator("data")
    @classmethod
    def _all_labelled(cls, data: DataConfig) -> DataConfig:
        if data.unlabeled is not None:
            raise ValueError("unlabeled samples are used for the target task only; give them as data.unlabeled")
        return data


class SearchConfig(Section):
    """How long to search, and towards what."""

    trials: Annotated[int, Field(ge=1)] | None = None  # stop after so many trials
    seconds: Annotated[float, Field(gt=0)] | None = None  # stop after so long; None with no trials: ten minutes
    metric: Metric = "f1_macro"  # on the validation split, maximized
    max_epochs: Annotated[int, Field(ge=1)] = 20
    scheduler: Scheduler = "promotion"  # which configurations are trained further; "none": all, to the end
    prune: bool = True  # false: as scheduler "none"
    recipes: bool = True  # try known-good recipes first
    keep_checkpoints: Annotated[int, Field(ge=1)] = 8  # of the best configurations, and of the best trained ones

    @property
    def chosen_scheduler(self) -> Scheduler:
        """What `scheduler` and `prune` ask for together."""
        return self.scheduler if self.prune else "none"

    @property
    def time_limit(self) -> float | None:
        """Seconds the search may take; None: until the trials are done."""
        return DEFAULT_SECONDS if self.seconds is None and self.trials is None else self.seconds


class FinishConfig(Section):
    """What becomes of a search: how its best few are confirmed, and what model is handed over.

    A soup is one model whose weights are an average: of several finalists, or of one and where its training began.
    `auto` does not try any: in 15 runs (pen digits, digits, emoji) those that the rule of ensembles would have taken
    changed test macro-F1 by -0.0005, standard error 0.0011.
    """

    model: FinishModel = "auto"  # auto: an ensemble where that is expected to be better
    finalists: Annotated[int, Field(ge=1)] = 4  # configurations that are trained anew, on the same folds
    refits: Annotated[int, Field(ge=1)] = 3  # trainings of the final model, each from another seed, to tell chance
    share: Annotated[float, Field(ge=0, lt=1)] = 0.35  # of the time limit, for confirming and for training on all
    latency_ms: Annotated[float, Field(gt=0)] | None = None  # for one sample; on the device of the run


class PluginsConfig(Section):
    """Plugins beyond the installed ones, and those to leave out."""

    dirs: tuple[Path, ...] = ()
    disabled: Names = ()


class CacheConfig(Section):
    """Where outputs of frozen layer groups are kept, and how many of them."""

    directory: str = "user"  # shared by all runs; "run": in the run directory; or a path
    budget_gib: Annotated[float, Field(gt=0)] | None = None  # None: a fifth of the free disk, at most 50
    device_share: Annotated[float, Field(ge=0, le=1)] = 0.4  # of a GPU's free memory, for what is read in every epoch


class Range(Section):
    """A numeric parameter's range, as `{low: 1e-5, high: 1e-2, log: true}`."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low <= self.high:
            raise ValueError(f"low must be <= high, got low={self.low} and high={self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a log range must start above 0, got low={self.low}")
        return self


Domain = Range | tuple[Scalar, ...] | Scalar
"""What `space:` may say of a parameter: a range, a list of choices, or one fixed value."""


def _domain(value: object) -> Domain:
    if isinstance(value, Range):
        return value
    if isinstance(value, Mapping):
        try:
            return Range.model_validate(dict(value))
        except ValidationError as error:
            reasons = "; ".join(f"{'.'.join(map(str, e['loc']))} {_reason(e)}".strip() for e in error.errors())
            raise ValueError(f"a range is {{low: .., high: .., log: true|false}}; {reasons}") from None
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("a list of choices must not be empty")
        return tuple(_number_if_it_reads_as_one(item) for item in value)
    return _number_if_it_reads_as_one(value)


def _number_if_it_reads_as_one(value: Any) -> Scalar:
    """YAML 1.1 reads `1e-3` as text; a user who writes it means the number."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
        return value
    if value is None or isinstance(value, int | float | bool):
        return value
    raise ValueError(f"a choice must be text, a number, true, false or null, got {value!r}")


class RunConfig(Section):
    """One run: `automl-tl search` reads it, the run directory keeps it."""

    data: TaskData
    name: str | None = None
    source: SourceConfig | None = None
    search: SearchConfig = SearchConfig()
    finish: FinishConfig = FinishConfig()
    backbones: Names = AUTO
    heads: Names = AUTO
    strategies: Names = AUTO
    space: dict[str, Annotated[Any, AfterValidator(_domain)]] = {}  # parameter name -> Domain
    plugins: PluginsConfig = PluginsConfig()
    cache: CacheConfig = CacheConfig()
    slots: str = "auto"
    seed: Annotated[int, Field(ge=0)] = 0
    run_dir: Path | None = None

    @field_validator("slots", mode="before")
    @classmethod
    def _a_number_of_slots(cls, value: object) -> object:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def load_config(source: Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file (or take a mapping), apply `a.b=c` overrides and validate.

    Raises
    ------
    ConfigError
        With every mistake in one message: path of the key, what is wrong, the nearest known key.
    """
    where = str(source) if isinstance(source, Path) else "the configuration"
    values = _read_yaml(source) if isinstance(source, Path) else dict(source)
    for override in overrides:
        _apply(values, override)
    return validate(values, where)


def validate(values: Mapping[str, Any], where: str) -> RunConfig:
    """Return the validated configuration; `where` names it in the error."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = [_describe(detail) for detail in error.errors()]
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise ConfigError(f"{where} has {count}:\n" + "\n".join(f"  {line}" for line in lines)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the configuration {path} is not a text file; expected YAML") from None
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date like 2024-13-45
        raise ConfigError(f"the configuration {path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"the configuration {path} must be a mapping with at least `data:`, got {type(values).__name__}"
        )
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: expected KEY=VALUE, as in search.trials=20")
    *parents, last = key.split(".") if not key.startswith("space.") else ("space", key.removeprefix("space."))
    node = values
    for parent in parents:
        below = node.get(parent)
        if parent == "data" and isinstance(below, str):
            below = {"path": below}
        node[parent] = below = dict(below) if isinstance(below, Mapping) else {}
        node = below
    if last == LITERAL and text != "null" and not text.startswith(("'", '"')):
        node[last] = text
        return
    try:
        node[last] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"--set {override!r}: the value is not valid YAML") from None


def _describe(detail: Mapping[str, Any]) -> str:
    """One mistake in one line: `search.trails: unknown key. Did you mean 'trials'?`."""
    location = [str(part) for part in detail["loc"]]
    path = ".".join(location)
    if detail["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        return f"{path}: unknown key. Known: {', '.join(known)}.{closest(location[-1], known)}"
    if detail["type"] == "missing":
        return f"{path}: required, but missing"
    got = detail.get("input")
    return f"{path}: {_reason(detail)}" + (f", got {got!r}" if isinstance(got, str | int | float | bool | None) else "")


def _reason(detail: Mapping[str, Any]) -> str:
    return str(detail["msg"]).removeprefix("Value error, ")


def _fields_at(location: Sequence[str]) -> list[str]:
    """The known keys of the section at `location`."""
    section: type[BaseModel] = RunConfig
    for part in location:
        field = section.model_fields.get(part)
        found = [t for t in (field.annotation, *get_args(field.annotation)) if _is_section(t)] if field else []
        if not found:
            return []
        section = found[0]
    return list(section.model_fields)


def _is_section(candidate: object) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)
