"""What training steps do to activations: mixup and noise, which vary what can no longer be augmented because it is
stored, and shorter texts, which take less time.

They act where training begins (`TransferModel.features` says where that is), so it is the same whether the rows were
stored there or have just been computed. Only training steps use them. All draws are torch's.

Changing stored features is worth it where changing images is too dear: Bär et al. ("FroFA"), CVPR 2024; Konuk et al.
("LOFF-TA"), NeurIPS 2024.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from automl_tl.model.pooling import Activation
from automl_tl.model.spec import Regularization
from automl_tl.plugin import Tokens
from automl_tl.training.losses import Loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixing:
    """What one step does to the rows that go through the model at once."""

    share: float = 1.0  # of each row itself, at least a half; the rest is its partner's
    partners: Tensor | None = None  # (N,) index of each row's partner; None: nothing is mixed
    noise: float = 0.0
    tokens: int = 0  # of each text; 0: all

    def change(self, activation: Activation) -> Activation:
        """The rows, shortened, with noise, then mixed with their partners."""
        activation = shortened(activation, self.tokens)
        if self.noise:
            activation = with_noise(activation, self.noise)
        if self.partners is not None:
            activation = mixed(activation, self.partners, self.share)
        return activation

    def loss(self, loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss on the rows' own labels and that on their partners', by their shares."""
        own = loss(logits, labels)
        if self.partners is None:
            return own
        return self.share * own + (1 - self.share) * loss(logits, labels[self.partners])


def draw_mixing(n_rows: int, settings: Regularization, device: str, *, tokens: int = 0) -> Mixing:
    """Draw partners and the share that they get for rows that go through the model at once.

    The share is Beta(alpha, alpha) with alpha = `settings.mixup`, as in Zhang et al. ("mixup"), ICLR 2018; between
    layers: Verma et al. ("Manifold Mixup"), ICML 2019. Both are drawn on the CPU, so that every device mixes alike.
    """
    if not settings.mixup:
        return Mixing(noise=settings.activation_noise, tokens=tokens)
    drawn = float(torch.distributions.Beta(settings.mixup, settings.mixup).sample())
    partners = torch.randperm(n_rows).to(device)
    return Mixing(share=max(drawn, 1 - drawn), partners=partners, noise=settings.activation_noise, tokens=tokens)


def shortened(activation: Activation, tokens: int) -> Activation:
    """The first `tokens` of each text; 0: all. What is no text stays as it is."""
    if not tokens or not isinstance(activation, Tokens):
        return activation
    return Tokens(activation.values[:, :tokens], activation.mask[:, :tokens])


def mixed(activation: Activation, partners: Tensor, share: float) -> Activation:
    """`share` of each row and the rest of its partner; of texts, a token that one of them lacks counts as zero."""
    if isinstance(activation, Tokens):
        values = _without_padding(activation)
        return Tokens(share * values + (1 - share) * values[partners], activation.mask | activation.mask[partners])
    return share * activation + (1 - share) * activation[partners]


def with_noise(activation: Activation, strength: float) -> Activation:
    """Normal noise of `strength` times the activations' spread around each channel's mean over the rows.

    DeVries and Taylor, "Dataset Augmentation in Feature Space", 2017. Padding of texts is zero afterwards.
    """
    if isinstance(activation, Tokens):
        values = activation.values
        noisy = values + strength * _spread(values[activation.mask]) * _normal(values)
        return Tokens(_without_padding(Tokens(noisy, activation.mask)), activation.mask)
    flat = activation.flatten(2).transpose(1, 2).flatten(0, 1) if activation.ndim == 4 else activation
    return activation + strength * _spread(flat) * _normal(activation)


def _spread(rows: Tensor) -> Tensor:
    """Root mean square distance from the mean row: (M, D) -> ()."""
    rows = rows.detach().float()
    return (rows - rows.mean(0)).square().mean().sqrt()


def _normal(like: Tensor) -> Tensor:
    """Normal noise in the order of the indices, whatever the layout in memory: a stored map may lie otherwise."""
    return torch.randn(like.shape, dtype=like.dtype, device=like.device)


def _without_padding(tokens: Tokens) -> Tensor:
    return tokens.values.masked_fill(~tokens.mask.unsqueeze(-1), 0.0)
