"""What every head must do. Each check builds it for several widths and parameters, and lets it read random features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from optuna.trial import FixedTrial
from torch import Tensor, nn

from automl_tl.plugin import Head, Suggest
from automl_tl.testing.draws import Draw, draws
from automl_tl.testing.outcome import require

SIZES = ((8, 2), (48, 10))  # in_features, n_outputs
DRAWS = 6


class Case(NamedTuple):
    """A built head, in eval mode."""

    module: nn.Module
    in_features: int
    n_outputs: int
    draw: Draw


def logits_have_one_column_an_output(head: Head) -> None:
    """Features (N, in_features) become float32 logits (N, n_outputs), all finite."""
    for case in _cases(head):
        logits = case.module(_features(4, case.in_features))
        expected = (4, case.n_outputs)
        require(
            tuple(logits.shape) == expected and logits.dtype == torch.float32,
            f"{head.name}: expected float32 logits of shape {expected}, got {logits.dtype} {tuple(logits.shape)}",
        )
        require(bool(logits.isfinite().all()), f"{head.name}: logits must be finite")


def samples_do_not_mix(head: Head) -> None:
    """In eval mode a sample by itself gets the logits that it gets in a batch."""
    for case in _cases(head):
        features = _features(4, case.in_features)
        batched, alone = case.module(features)[:1], case.module(features[:1])
        require(
            batched.shape == alone.shape,
            f"{head.name}: expected logits of shape {tuple(batched.shape)} for one sample, got {tuple(alone.shape)}",
        )
        require(
            torch.allclose(batched, alone, rtol=1e-3, atol=1e-4, equal_nan=True),
            f"{head.name}: in eval mode, a sample's logits must not depend on the others in its batch",
        )


def outputs_are_raw_logits(head: Head) -> None:
    """No softmax, log-softmax or sigmoid at the end: the loss applies it."""
    for case in _cases(head):
        logits = case.module(10 * _features(64, case.in_features))
        probabilities = bool(((logits >= 0) & (logits <= 1)).all())
        log_probabilities = bool((logits.logsumexp(1).abs() < 1e-3).all())
        require(
            not probabilities and not log_probabilities,
            f"{head.name}: outputs look like {'' if probabilities else 'log-'}probabilities; return raw logits",
        )


def gradients_reach_the_features(head: Head) -> None:
    """Every sample's features receive a gradient, so that layer groups below can be fine-tuned."""
    for case in _cases(head):
        features = _features(4, case.in_features).requires_grad_()
        logits = case.module(features)
        require(logits.requires_grad, f"{head.name}: no gradient flows through it")
        [gradient] = torch.autograd.grad((logits * _features(*logits.shape)).sum(), features, allow_unused=True)
        require(
            gradient is not None and bool(gradient.abs().sum(1).gt(0).all()),
            f"{head.name}: gradients do not reach the features; remove detach() or no_grad()",
        )


def build_is_a_pure_function(head: Head) -> None:
    """The same parameters and seed give the same head."""
    for case in _cases(head):
        again = _build(head, FixedTrial(case.draw.parameters), case.in_features, case.n_outputs)
        require(
            _same(case.module.state_dict(), again.state_dict()),
            f"{head.name}: the parameters {case.draw.parameters} and one seed gave two heads; "
            "take random numbers from torch's default generator",
        )


def search_space_is_static(head: Head) -> None:
    """Every trial suggests the same names and ranges; a sampler learns little from others."""
    first: dict[int, Draw] = {}
    for case in _cases(head):
        expected = first.setdefault(case.in_features, case.draw).space
        require(
            case.draw.space == expected,
            f"{head.name}: every trial must suggest the same names and ranges; got {expected}, then {case.draw.space}",
        )


def state_dict_holds_all(head: Head) -> None:
    """A state dictionary loaded strictly into a head built with another seed makes it the same function."""
    for case in _cases(head):
        other = _build(head, FixedTrial(case.draw.parameters), case.in_features, case.n_outputs, seed=1)
        other.load_state_dict(case.module.state_dict(), strict=True)
        features = _features(4, case.in_features)
        require(
            torch.allclose(case.module(features), other(features), equal_nan=True),
            f"{head.name}: its state dictionary lacks something it needs; register tensors as parameters or buffers",
        )


HEAD_CHECKS = (
    logits_have_one_column_an_output,
    samples_do_not_mix,
    outputs_are_raw_logits,
    gradients_reach_the_features,
    build_is_a_pure_function,
    search_space_is_static,
    state_dict_holds_all,
)


def _cases(head: Head) -> Iterator[Case]:
    for in_features, n_outputs in SIZES:
        for draw in draws(DRAWS):
            yield Case(_build(head, draw, in_features, n_outputs), in_features, n_outputs, draw)


def _build(head: Head, trial: Suggest, in_features: int, n_outputs: int, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = head.build(trial, in_features=in_features, n_outputs=n_outputs).eval()
        with torch.no_grad():
            for parameter in module.parameters():  # away from zeros: an output layer may well start there
                parameter.add_(0.1 * torch.randn_like(parameter))
        return module


def _features(n: int, width: int) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(0))


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
