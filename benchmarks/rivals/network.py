"""A network to fine-tune, its batches, and how it predicts: plain PyTorch.

Shapes: N samples in a batch, C channels or features, L tokens of the batch's longest text.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from automl_tl.features.rows import Rows
from automl_tl.plugin import Tokens
from rivals.reading import Part, Task, build_stages, shortened

BATCH = 32
POOL = 50  # batches of texts that are sorted by length together
EVALUATED = 128  # samples a batch without gradients
TIMED, TIMED_TOKENS = 8, 64  # samples in a step that only finds out which precision is faster, and their length
SHIFT = 8  # images are moved by up to their side divided by this
SOURCE_EPOCHS, SOURCE_BATCH = 20, 128


class Network(nn.Module):
    """Stages of a backbone, mean pooling, dropout, a linear layer. The first `n_frozen` stages never change."""

    def __init__(self, stages: nn.ModuleList, width: int, n_classes: int, *, dropout: float, n_frozen: int) -> None:
        super().__init__()
        self.stages = stages
        self.n_frozen = n_frozen
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, n_classes)
        for stage in stages[:n_frozen]:
            stage.requires_grad_(False)

    def train(self, mode: bool = True) -> Network:
        """Normalization and dropout of frozen stages stay as in evaluation."""
        super().train(mode)
        for stage in self.stages[: self.n_frozen]:
            stage.eval()
        return self

    def forward(self, x: Tensor | Tokens) -> Tensor:
        """Logits (N, classes)."""
        logits: Tensor = self.head(self.dropout(features(self.stages, x)))
        return logits


def features(stages: nn.ModuleList, x: Tensor | Tokens) -> Tensor:
    """The last stage's output (N, C), averaged over pixels or over real tokens."""
    for stage in stages:
        x = stage(x)
    if isinstance(x, Tokens):
        real = x.mask.unsqueeze(-1).to(x.values.dtype)  # (N, L, 1)
        return (x.values * real).sum(1) / real.sum(1)
    return x.mean((2, 3)) if x.ndim == 4 else x


def pretrained_stages(task: Task) -> nn.ModuleList:
    """The backbone's stages, ready to be fine-tuned; trained on the source task first where there is one."""
    stages = build_stages(task)
    for module in stages.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # torch's default; the published 0.01 would not see the new images in a few epochs
    if task.source is not None:
        train_on_source(stages, task.source)
    return stages


def train_on_source(stages: nn.ModuleList, source: Part) -> None:
    width = feature_width(stages, source.rows)
    network = Network(stages, width, int(source.labels.max()) + 1, dropout=0.1, n_frozen=0).train()
    steps = SOURCE_EPOCHS * max(1, len(source) // SOURCE_BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)
    batches = endless_batches(source.rows, np.arange(len(source)), np.random.default_rng(0), size=SOURCE_BATCH)
    for _ in range(steps):
        step(network, optimizer, source, next(batches), bf16=False)
        schedule.step()


def feature_width(stages: nn.ModuleList, rows: Rows) -> int:
    with torch.inference_mode():
        return features(stages.eval(), rows.batch(np.arange(2), "cpu")).shape[1]


def step(
    network: Network,
    optimizer: torch.optim.Optimizer,
    part: Part,
    batch: np.ndarray,
    *,
    bf16: bool,
    augmentation: str = "none",
) -> None:
    """One step of gradient descent on the samples at `batch`."""
    inputs = part.rows.batch(batch, "cpu")
    if augmentation != "none" and isinstance(inputs, Tensor):
        inputs = augmented(inputs, flip=augmentation == "shift and flip")
    with autocast(bf16):
        logits = network(inputs)
    loss = functional.cross_entropy(logits.float(), torch.from_numpy(part.labels[batch]))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


def predict(network: Network, rows: Rows, indices: np.ndarray, *, bf16: bool) -> np.ndarray:
    """Class numbers of the samples at `indices`; texts of like length share a batch."""
    network.eval()
    order = indices if rows.lengths is None else indices[np.argsort(rows.lengths[indices], kind="stable")]
    found = np.empty(len(rows), dtype=np.int64)
    with torch.inference_mode(), autocast(bf16):
        for start in range(0, len(order), EVALUATED):
            batch = order[start : start + EVALUATED]
            found[batch] = network(rows.batch(batch, "cpu")).argmax(1).numpy()
    said: np.ndarray = found[indices]
    return said


def endless_batches(
    rows: Rows, indices: np.ndarray, generator: np.random.Generator, *, size: int = BATCH
) -> Iterator[np.ndarray]:
    """Batches of one epoch after another. Texts are sorted by length within pools of some batches, to pad little."""
    while True:
        order = generator.permutation(indices)
        if rows.lengths is not None:
            pools = [order[start : start + POOL * size] for start in range(0, len(order), POOL * size)]
            order = np.concatenate([pool[np.argsort(rows.lengths[pool], kind="stable")] for pool in pools])
        whole = max(size, len(order) // size * size)  # a rest of one sample would break batch normalization
        starts = np.arange(0, min(whole, len(order)), size)
        for start in generator.permutation(starts):
            yield order[start : start + size]


def augmented(images: Tensor, *, flip: bool) -> Tensor:
    """Each image (C, S, S) moved a little, its border repeated, and mirrored half the time if asked for."""
    count, _, side, _ = images.shape
    most = side // SHIFT
    wide = functional.pad(images, (most,) * 4, mode="replicate")
    moved = torch.empty_like(images)
    for index, (down, right) in enumerate(torch.randint(2 * most + 1, (count, 2)).tolist()):
        moved[index] = wide[index, :, down : down + side, right : right + side]
    if flip:
        mirrored = torch.rand(count) < 0.5
        moved[mirrored] = moved[mirrored].flip(3)
    return moved


def autocast(bf16: bool) -> AbstractContextManager[None]:
    return torch.autocast("cpu", torch.bfloat16, enabled=bf16)


def bf16_is_faster(network: Network, part: Part) -> bool:
    """Time a small step in each precision, after one to warm up; the weights stay as they are."""
    part = shortened(part, TIMED_TOKENS)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    network.train()
    batch = np.arange(min(TIMED, len(part)))
    seconds = {}
    for bf16 in (False, True):
        step(network, optimizer, part, batch, bf16=bf16)
        began = time.perf_counter()
        step(network, optimizer, part, batch, bf16=bf16)
        seconds[bf16] = time.perf_counter() - began
    return seconds[True] < seconds[False]
