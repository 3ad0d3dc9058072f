"""Cosine similarity to one prototype a class: strong with few samples, and blind to the features' length.

Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting", 2018; Chen et al., "A Closer Look at
Few-shot Classification", 2019 (Baseline++).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from automl_tl.plugin import Head, Suggest, hookimpl

if TYPE_CHECKING:
    from torch import nn


@hookimpl
def automl_tl_heads() -> list[Head]:
    """Register the cosine head."""
    return [Head(name="cosine", description="cosine similarity to one learned prototype a class", build=build)]


def build(trial: Suggest, *, in_features: int, n_outputs: int) -> nn.Module:
    """Build the classifier."""
    from automl_tl_builtins.networks.cosine_classifier import CosineClassifier

    return CosineClassifier(in_features, n_outputs)
