"""Augmentation of training batches: random changes that keep the label. Evaluation never sees them.

`light` suits any pictures, digits and letters included; `strong` also mirrors, recolors and erases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from automl_tl.model.pooling import Activation
from automl_tl.model.spec import Augmentation
from automl_tl.plugin import Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Strength:
    """How far a batch is changed."""

    shift: float  # of the side, to each direction
    zoom: float
    degrees: float
    mirror: bool
    color: float  # spread of contrast and brightness
    erase: float  # share of the side of the erased square
    word_dropout: float
    noise: float  # in standard deviations of a table's columns


LIGHT = Strength(shift=0.08, zoom=0.1, degrees=8, mirror=False, color=0.0, erase=0.0, word_dropout=0.05, noise=0.05)
STRONG = Strength(shift=0.12, zoom=0.2, degrees=15, mirror=True, color=0.3, erase=0.25, word_dropout=0.15, noise=0.15)


def augment(batch: Activation, how: Augmentation) -> Activation:
    """Return a changed copy of a batch of inputs: images (N, 3, H, W), Tokens, or table rows (N, D)."""
    if how == "none":
        return batch
    strength = LIGHT if how == "light" else STRONG
    if isinstance(batch, Tokens):
        return _drop_words(batch, strength)
    if batch.ndim == 4:
        return _change_images(batch, strength)
    return batch + strength.noise * torch.randn_like(batch)


def _drop_words(batch: Tokens, strength: Strength) -> Tokens:
    """Hide random tokens, as if they were padding; the first one stays, it may stand for the whole text."""
    hidden = torch.rand(batch.mask.shape, device=batch.mask.device) < strength.word_dropout
    hidden[:, 0] = False
    return Tokens(batch.values, batch.mask & ~hidden)


def _change_images(images: Tensor, strength: Strength) -> Tensor:
    n, device = len(images), images.device

    def uniform(spread: float) -> Tensor:
        return (torch.rand(n, device=device) * 2 - 1) * spread

    angle = uniform(math.radians(strength.degrees))
    zoom = 1 + uniform(strength.zoom)
    mirror = (
        torch.where(torch.rand(n, device=device) < 0.5, -1.0, 1.0) if strength.mirror else torch.ones(n, device=device)
    )
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    rows = [torch.stack([mirror * cosine, -sine, 2 * uniform(strength.shift)], 1)]
    rows.append(torch.stack([mirror * sine, cosine, 2 * uniform(strength.shift)], 1))
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    images = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if strength.color:
        contrast, brightness = 1 + uniform(strength.color), uniform(strength.color)
        images = images * contrast.view(n, 1, 1, 1) + brightness.view(n, 1, 1, 1)
    if strength.erase:
        images = _erase(images, strength.erase)
    return images


def _erase(images: Tensor, share: float) -> Tensor:
    """Replace one square of each image by zero, which is the mean color (Zhong et al., AAAI 2020)."""
    n, _, height, width = images.shape
    top = torch.randint(0, height, (n, 1, 1), device=images.device)
    left = torch.randint(0, width, (n, 1, 1), device=images.device)
    y = torch.arange(height, device=images.device).view(1, -1, 1)
    x = torch.arange(width, device=images.device).view(1, 1, -1)
    inside = (y >= top) & (y < top + share * height) & (x >= left) & (x < left + share * width)
    return images.masked_fill(inside.unsqueeze(1), 0.0)
