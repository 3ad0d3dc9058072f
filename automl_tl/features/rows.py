"""Rows: what a trial draws its batches from, whatever lies beneath: pixels, token ids, tables, or kept activations.

All kinds answer the same two questions: how many rows, and the batch of these indices. Those named `Stored…` read from
the feature store; `ActivationRows` and `TokenActivationRows` hold tensors in memory, on whatever device.
Shapes: N rows in a batch, S pixels a side, L tokens of the batch's longest text, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from automl_tl.model.pooling import Activation
from automl_tl.plugin import Tokens

CHUNK = 4096  # rows that are read at once where all are wanted
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


class Values(Protocol):
    """Arrays behind rows: in memory, or mapped from the feature store."""

    @property
    def lengths(self) -> np.ndarray | None: ...  # noqa: D102  (items in each row, None where all are alike)

    def __len__(self) -> int: ...

    def gather(self, indices: Indices, columns: slice | None = None) -> np.ndarray: ...  # noqa: D102

    def gather_ragged(self, indices: Indices) -> tuple[np.ndarray, np.ndarray]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class ArrayValues:
    """Values in memory: (N, ...), or with `offsets` rows of different lengths, end to end."""

    values: np.ndarray
    offsets: np.ndarray | None = None  # int64, one more than there are rows

    @property
    def lengths(self) -> np.ndarray | None:
        """Items in each row; None where all are alike."""
        return None if self.offsets is None else np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    def gather(self, indices: Indices, columns: slice | None = None) -> np.ndarray:
        """Rows of equal length, (N, ...)."""
        found: np.ndarray = self.values[indices]
        return found if columns is None else found[:, columns]

    def gather_ragged(self, indices: Indices) -> tuple[np.ndarray, np.ndarray]:
        """Rows end to end, and their lengths."""
        assert self.offsets is not None
        parts = [self.values[self.offsets[index] : self.offsets[index + 1]] for index in indices]
        return np.concatenate(parts), np.diff(self.offsets)[indices]


@dataclass(frozen=True, slots=True)
class ImageRows:
    """Pixels, uint8 (N, 3, S, S), normalized when a batch is drawn."""

    pixels: Values
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    lengths = None

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Indices, device: str) -> Tensor:
        """Float images (N, 3, S, S), channels last in memory."""
        images = torch.from_numpy(self.pixels.gather(indices)).to(device).float()
        mean = torch.tensor(self.mean, device=device).view(3, 1, 1) * 255
        std = torch.tensor(self.std, device=device).view(3, 1, 1) * 255
        # Channels last: convolutions with few channels a group run faster so on the processors it was tried on.
        return images.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, slots=True)
class TableRows:
    """Encoded rows of a table, float32 (N, D)."""

    values: Values

    lengths = None

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, indices: Indices, device: str) -> Tensor:
        """Float features (N, D)."""
        return torch.from_numpy(self.values.gather(indices)).to(device)


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Token ids of texts, int32, ragged."""

    ids: Values
    pad_id: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each text."""
        lengths = self.ids.lengths
        assert lengths is not None
        return lengths

    def batch(self, indices: Indices, device: str) -> Tokens:
        """Token ids (N, L), padded to the batch's longest text and no further."""
        flat, lengths = self.ids.gather_ragged(indices)
        mask = _mask(lengths)
        ids = np.full(mask.shape, self.pad_id, dtype=np.int64)
        ids[mask] = flat
        return Tokens(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device))


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Stored outputs of a frozen prefix: maps, kept as (H, W, C), or features (D,).

    `columns` choose among stored features, in this order.
    """

    values: Values
    dtype: str
    columns: tuple[slice, ...] = ()
    lengths: np.ndarray | None = None  # of the texts they came from, so that batches are the same as without a store

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, indices: Indices, device: str) -> Tensor:
        """Float maps (N, C, H, W), channels last in memory, or features (N, D)."""
        return self.native(indices).to(device).float()

    def native(self, indices: Indices) -> Tensor:
        """The same in the type that is stored, in host memory."""
        parts = [self.values.gather(indices, columns) for columns in self.columns or (None,)]
        values = as_tensor(parts[0] if len(parts) == 1 else np.concatenate(parts, 1), self.dtype)
        return values.permute(0, 3, 1, 2) if values.ndim == 4 else values

    def features(self) -> np.ndarray:
        """All rows of features at once, (N, D) float32."""
        whole: np.ndarray | None = None
        for start in range(0, len(self), CHUNK):
            part = self.native(np.arange(start, min(start + CHUNK, len(self))))
            if whole is None:
                whole = np.empty((len(self), part.shape[1]), dtype=np.float32)
            whole[start : start + len(part)] = part.float().numpy()
        assert whole is not None
        return whole


@dataclass(frozen=True, slots=True)
class StoredTokenRows:
    """Stored hidden states of a frozen prefix, real tokens only: ragged (D,)."""

    values: Values
    dtype: str

    def __len__(self) -> int:
        return len(self.values)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each text."""
        lengths = self.values.lengths
        assert lengths is not None
        return lengths

    def batch(self, indices: Indices, device: str) -> Tokens:
        """Hidden states (N, L, D), padded with zeros to the batch's longest text."""
        return _padded(self.native(indices).to(device).float(), self.lengths[indices])

    def native(self, indices: Indices) -> Tensor:
        """The tokens of these rows end to end, in the type that is stored, in host memory."""
        return as_tensor(self.values.gather_ragged(indices)[0], self.dtype)


@dataclass(frozen=True, slots=True)
class ViewRows:
    """Several changed views of the same rows; every row of a batch comes from a view drawn at random."""

    views: Sequence[Rows]

    def __len__(self) -> int:
        return len(self.views[0])

    @property
    def lengths(self) -> np.ndarray | None:
        """Tokens in each row, which all views share."""
        return self.views[0].lengths

    def batch(self, indices: Indices, device: str) -> Activation:
        """The rows at `indices`, each of one of its views; the draw is torch's, so a trial's seed decides it."""
        drawn = torch.randint(len(self.views), (len(indices),)).numpy()
        order = np.argsort(drawn, kind="stable")
        parts = [
            view.batch(indices[drawn == number], device)
            for number, view in enumerate(self.views)
            if (drawn == number).any()
        ]
        back = torch.from_numpy(np.argsort(order, kind="stable")).to(device)
        return _joined(parts, back)


@dataclass(frozen=True, slots=True)
class ActivationRows:
    """Outputs of a frozen prefix in memory: maps (N, C, H, W) or features (N, D)."""

    values: Tensor
    lengths: np.ndarray | None = None  # of the texts they came from, so that batches are the same as without a cache

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, indices: Indices, device: str) -> Tensor:
        """The activations of these rows."""
        return self.values[torch.from_numpy(indices).to(self.values.device)].to(device).float()


@dataclass(frozen=True, slots=True)
class TokenActivationRows:
    """Hidden states of a frozen prefix in memory, real tokens only, end to end: (all tokens, D)."""

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
        flat = torch.cat([self.values[self.offsets[index] : self.offsets[index + 1]] for index in indices])
        return _padded(flat.to(device).float(), self.lengths[indices])


def as_tensor(values: np.ndarray, dtype: str) -> Tensor:
    """A tensor over the array's memory. bfloat16, which numpy lacks, is kept as its bits."""
    tensor = torch.from_numpy(values)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def as_array(values: Tensor, dtype: str) -> np.ndarray:
    """The array to store: the inverse of `as_tensor`, rounded to `dtype`."""
    if dtype == "bfloat16":
        return values.to(torch.bfloat16).view(torch.uint16).numpy()
    return values.to(getattr(torch, dtype)).numpy()


def _joined(parts: Sequence[Activation], order: Tensor) -> Activation:
    """Concatenate batches, texts padded to the longest, and put their rows in `order`."""
    if not isinstance(parts[0], Tokens):
        return torch.cat([part for part in parts if isinstance(part, Tensor)])[order]
    tokens = [part for part in parts if isinstance(part, Tokens)]
    longest = max(part.mask.shape[1] for part in tokens)
    pads = [longest - part.mask.shape[1] for part in tokens]
    values = [
        torch.cat([part.values, part.values.new_zeros(len(part.values), pad, *part.values.shape[2:])], 1)
        for part, pad in zip(tokens, pads, strict=True)
    ]
    masks = [torch.cat([t.mask, t.mask.new_zeros(len(t.mask), pad)], 1) for t, pad in zip(tokens, pads, strict=True)]
    return Tokens(torch.cat(values)[order], torch.cat(masks)[order])


def _padded(flat: Tensor, lengths: np.ndarray) -> Tokens:
    """Rows end to end (all tokens, D) -> hidden states (N, L, D) and their mask."""
    mask = torch.from_numpy(_mask(lengths)).to(flat.device)
    hidden = flat.new_zeros(*mask.shape, flat.shape[1])
    hidden[mask] = flat  # a mask is read row by row, which is the order of the tokens
    return Tokens(hidden, mask)


def _mask(lengths: np.ndarray) -> np.ndarray:
    mask: np.ndarray = np.arange(int(lengths.max()))[None, :] < lengths[:, None]
    return mask
