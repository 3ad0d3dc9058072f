"""Rows: what a trial draws its batches from, whatever lies beneath: pixels, token ids, tables, or kept activations.

All kinds answer the same two questions: how many rows, and the batch of these indices. Shapes: N rows in a batch, S
pixels a side, L tokens of the batch's longest text, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from automl_tl.model.pooling import Activation
from automl_tl.plugin import Tokens

Indices = np.ndarray  # int64, (N,)


class Rows(Protocol):
    """A sequence of samples or activations that gives batches."""

    @property
    def lengths(self) -> np.ndarray | None:
        """Tokens in each row, for batching by length; None where all rows are equally long."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Indices, device: str) -> Activation:
        """The rows at `indices`, on `device`, ready for the first group that is not computed yet."""
        ...


@dataclass(frozen=True, slots=True)
class ImageRows:
    """Pixels, uint8 (N, 3, S, S), normalized when a batch is drawn."""

    pixels: np.ndarray
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    lengths = None

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Indices, device: str) -> Tensor:
        """Float images (N, 3, S, S), channels last in memory."""
        images = torch.from_numpy(self.pixels[indices]).to(device).float()
        mean = torch.tensor(self.mean, device=device).view(3, 1, 1) * 255
        std = torch.tensor(self.std, device=device).view(3, 1, 1) * 255
        # Channels last: convolutions with few channels a group run faster so on the processors it was tried on.
        return images.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, slots=True)
class TableRows:
    """Encoded rows of a table, float32 (N, D)."""

    values: np.ndarray

    lengths = None

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, indices: Indices, device: str) -> Tensor:
        """Float features (N, D)."""
        return torch.from_numpy(self.values[indices]).to(device)


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Token ids of all texts end to end; text i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: np.ndarray  # int32
    offsets: np.ndarray  # int64, one more than there are texts
    pad_id: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each text."""
        return np.diff(self.offsets)

    def batch(self, indices: Indices, device: str) -> Tokens:
        """Token ids (N, L), padded to the batch's longest text and no further."""
        lengths = self.lengths[indices]
        ids = np.full((len(indices), int(lengths.max())), self.pad_id, dtype=np.int64)
        for row, index in enumerate(indices):
            ids[row, : lengths[row]] = self.ids[self.offsets[index] : self.offsets[index + 1]]
        return Tokens(torch.from_numpy(ids).to(device), _mask(lengths, ids.shape[1], device))


@dataclass(frozen=True, slots=True)
class ActivationRows:
    """Kept outputs of a frozen prefix: maps (N, C, H, W) or features (N, D)."""

    values: Tensor
    lengths: np.ndarray | None = None  # of the texts they came from, so that batches are the same as without a cache

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, indices: Indices, device: str) -> Tensor:
        """The activations of these rows."""
        return self.values[torch.from_numpy(indices).to(self.values.device)].to(device)


@dataclass(frozen=True, slots=True)
class TokenActivationRows:
    """Kept hidden states of a frozen prefix, real tokens only, end to end: (all tokens, D)."""

    values: Tensor
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each text."""
        return np.diff(self.offsets)

    def batch(self, indices: Indices, device: str) -> Tokens:
        """Hidden states (N, L, D), padded with zeros to the batch's longest text."""
        lengths = self.lengths[indices]
        hidden = self.values.new_zeros(len(indices), int(lengths.max()), self.values.shape[1])
        for row, index in enumerate(indices):
            hidden[row, : lengths[row]] = self.values[self.offsets[index] : self.offsets[index + 1]]
        return Tokens(hidden.to(device), _mask(lengths, hidden.shape[1], device))


def _mask(lengths: np.ndarray, longest: int, device: str) -> Tensor:
    return torch.from_numpy(np.arange(longest)[None, :] < lengths[:, None]).to(device)


def size_in_bytes(rows: ActivationRows | TokenActivationRows) -> int:
    """Memory that kept activations take."""
    return rows.values.numel() * rows.values.element_size()
