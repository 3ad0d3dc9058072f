"""All that a plugin author imports: the hook marker and the values that the hooks return.

A plugin registers *values*: frozen dataclasses that hold a name and pure functions. The host looks them up by name
and applies them, so a strategy can never forget BatchNorm statistics or optimizer groups, and a winning plan can be
printed, stored as JSON and replayed without the plugin. Importing this module does not import torch.

Shapes below: N samples in a batch, C channels, H and W pixels, L tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import pluggy

if TYPE_CHECKING:
    from torch import Tensor, nn

HOOK_API = 1
"""Version of this surface. Fields are only ever added, with a default; anything else raises this number."""

hookimpl = pluggy.HookimplMarker("automl_tl")

Choice = str | int | float | bool | None
Modality = Literal["image", "text", "tabular"]
Action = Literal["freeze", "tune", "reinit", "drop"]
Part = Literal["all", "norm", "bias"]


class Suggest(Protocol):
    """The part of an Optuna trial that a plugin may use. The host scopes the names, so short ones are fine."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Choice]) -> Choice: ...


class Tokens(NamedTuple):
    """What flows between the layer groups of a text backbone."""

    values: Tensor  # (N, L) int64 token ids at the input, (N, L, D) hidden states afterwards
    mask: Tensor  # (N, L) bool, True where there is a token, False where there is padding


class Tokenizer(Protocol):
    """Turns texts into token ids; deterministic."""

    @property
    def pad_id(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, special tokens included, truncated to the backbone's longest."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInput:
    """Images: RGB, resized to a square, scaled to [0, 1], then `(x - mean) / std` per channel."""

    size: int  # pixels a side at which the weights were trained
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    smallest: int = 32  # pixels a side below which the network makes no sense
    modality: Literal["image"] = "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextInput:
    """Texts: token ids from the backbone's own tokenizer."""

    tokenizer: Callable[[], Tokenizer]
    identity: str  # names tokenizer and vocabulary; part of the key of whatever is stored
    modality: Literal["text"] = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class TabularInput:
    """Rows of a table: standardized numbers and one-hot categories, shape (N, D), float32."""

    modality: Literal["tabular"] = "tabular"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Where a backbone's transferred weights come from."""

    find: Callable[[], Path | None]  # the file on this machine, None when it is not installed; must be fast
    install: str  # the command that installs them
    origin: str  # what they were trained on and where they were published
    license: str
    sha256: str


class BuildBackbone(Protocol):
    """Build the network.

    `input_shape` is one sample's: (3, H, W) for images, () for texts, (D,) for tables. With `weights` the file is
    loaded; without, the weights are random and reproducible under `torch.manual_seed`, and nothing is read or fetched.
    The module's children named in `layer_groups`, applied in order, are its forward pass.
    """

    def __call__(self, *, input_shape: tuple[int, ...], weights: Path | None) -> nn.Module: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A feature extractor, as an ordered sequence of named layer groups.

    Each group maps the previous one's output to its own: a tensor (N, C, H, W), (N, D), or `Tokens`. Their composition
    is the forward pass, so any prefix can be frozen and its output kept, and any tail can be dropped.
    """

    name: str
    description: str
    input: ImageInput | TextInput | TabularInput
    layer_groups: tuple[str, ...]  # names of child modules, input to output; every parameter in exactly one
    build: BuildBackbone
    weights: Weights | None = None  # None: random, unless the run trains it on a source task
    requires: tuple[str, ...] = ()  # importable modules that `build` needs
    install: str = ""  # the command that installs `requires`


class BuildHead(Protocol):
    """Build a head: (N, in_features) -> (N, n_outputs) raw logits. Parameters come from `trial`."""

    def __call__(self, trial: Suggest, *, in_features: int, n_outputs: int) -> nn.Module: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The task-specific part: reads the pooled output of the tapped layer group."""

    name: str
    description: str
    build: BuildHead


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """What a strategy may know of a layer group."""

    name: str
    parameters: int  # number of values
    flop_share: float  # of the backbone's forward pass, 0 to 1
    output: tuple[int, ...] = ()  # shape of one sample's output: (C, H, W), (D,), or (L, D) for a text of L tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanContext:
    """What a strategy may know of the task."""

    backbone: str
    modality: Modality
    n_train: int  # training samples
    n_classes: int
    max_epochs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """What happens to one layer group."""

    group: str
    action: Action  # freeze and tune keep the transferred weights; reinit draws new ones and trains; drop removes
    unfreeze_epoch: int = 0  # first epoch, from 0, in which a tuned or re-initialized group trains
    lr_scale: float = 1.0  # multiplies the learning rate; > 0
    part: Part = "all"  # which parameters of a tuned group train


@dataclass(frozen=True, slots=True)
class TransferPlan:
    """One `GroupPlan` a layer group, input to output.

    Dropped groups form the tail, at least one group is kept, and a re-initialized group always trains.
    """

    groups: tuple[GroupPlan, ...]

    def __iter__(self) -> Iterator[GroupPlan]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)


class PlanTransfer(Protocol):
    """Decide the plan: a pure function, the same parameters give the same plan."""

    def __call__(self, trial: Suggest, groups: Sequence[LayerGroup], context: PlanContext) -> TransferPlan: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezingStrategy:
    """Decides which layer groups to freeze, fine-tune, re-initialize or drop."""

    name: str
    description: str
    plan: PlanTransfer
