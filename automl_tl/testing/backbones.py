"""What every backbone must do. Each check builds it with random weights, small where it may be, on random samples."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from automl_tl.host import availability, missing_requirements
from automl_tl.plugin import Backbone, ImageInput, TextInput, Tokens
from automl_tl.testing.outcome import CheckSkipped, require

PIXELS = 64  # a side, unless the backbone wants more or was trained on less
COLUMNS = 7
SENTENCES = (
    "A cat sat on the mat.",
    "Nobody expected it to rain.",
    "Transfer learning keeps what was learned on one task to learn another with fewer labels.",
)

Activation = Tensor | Tokens


def groups_compose_to_the_forward_pass(backbone: Backbone) -> None:
    """The layer groups applied in order are the module's forward pass, so that any prefix stands for itself."""
    module, sample = _build(backbone), _samples(backbone)
    whole, composed = _run(module, sample), _run_groups(module, backbone, sample)[-1]
    require(
        type(whole) is type(composed) and _close(_values(whole), _values(composed)),
        f"{backbone.name}: applying {', '.join(backbone.layer_groups)} in order must equal the module's forward pass",
    )


def every_parameter_is_in_one_group(backbone: Backbone) -> None:
    """Each parameter belongs to exactly one layer group, so that its fate is what the plan says of that group."""
    module = _build(backbone)
    owned = Counter(id(p) for name in backbone.layer_groups for p in module.get_submodule(name).parameters())
    for name, parameter in module.named_parameters():
        count = owned[id(parameter)]
        require(count == 1, f"{backbone.name}: parameter {name} must be in exactly one layer group, it is in {count}")


def activations_are_valid(backbone: Backbone) -> None:
    """Each group gives float32 (N, C, H, W), (N, D) or `Tokens` of (N, L, D), finite, also for a single sample."""
    module = _build(backbone)
    for n in (1, 3):
        activations = _run_groups(module, backbone, _samples(backbone, n))
        for name, activation in zip(backbone.layer_groups, activations, strict=True):
            whose = f"{backbone.name}: layer group {name!r}, given {n} samples,"
            values, ranks = (activation.values, (3,)) if isinstance(activation, Tokens) else (activation, (2, 4))
            require(
                values.dim() in ranks and len(values) == n and values.dtype == torch.float32,
                f"{whose} must give float32 (N, C, H, W), (N, D) or Tokens of (N, L, D), "
                f"got {values.dtype} {tuple(values.shape)}",
            )
            require(bool(_values(activation).isfinite().all()), f"{whose} gives values that are not finite")


def same_seed_gives_same_weights(backbone: Backbone) -> None:
    """Random weights come from torch's default generator, so that a run can be repeated."""
    differing = _differing(_build(backbone, seed=1), _build(backbone, seed=1))
    require(not differing, f"{backbone.name}: built twice under one seed, these differ: {', '.join(differing)}")


def forward_is_deterministic_in_eval(backbone: Backbone) -> None:
    """In eval mode the output depends on the sample alone, so that it can be computed once and kept."""
    module, sample = _build(backbone), _samples(backbone)
    first, second = (_values(_run(module, sample, seed)) for seed in (1, 2))
    require(_close(first, second), f"{backbone.name}: in eval mode, the same samples give different outputs")


def samples_do_not_mix(backbone: Backbone) -> None:
    """In eval mode a sample's output is the same whatever else is in the batch, padding included."""
    module = _build(backbone)
    together, alone = _run(module, _samples(backbone, 3)), _run(module, _samples(backbone, 1))
    batched = Tokens(together.values[:1], together.mask[:1]) if isinstance(together, Tokens) else together[:1]
    require(
        _close(_values(batched), _values(alone)),
        f"{backbone.name}: in eval mode, a sample's output must not depend on the others in its batch",
    )


def gradients_reach_the_first_group(backbone: Backbone) -> None:
    """All layer groups can be fine-tuned: gradients flow back to the first that has parameters."""
    module, sample = _build(backbone), _samples(backbone)
    groups = (list(module.get_submodule(name).parameters()) for name in backbone.layer_groups)
    first = next((parameters for parameters in groups if parameters), [])
    values = _values(_run(module, sample, train=True))
    require(values.requires_grad and bool(first), f"{backbone.name}: no gradient flows through it")
    gradients = torch.autograd.grad((values * _noise(*values.shape)).sum(), first, allow_unused=True)
    require(
        any(gradient is not None and bool(gradient.ne(0).any()) for gradient in gradients),
        f"{backbone.name}: gradients do not reach the first layer group; remove detach() or no_grad()",
    )


def weights_match_their_digest(backbone: Backbone) -> None:
    """The installed weights are the file that the plugin says they are."""
    path, expected = _weights(backbone)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    require(digest == expected, f"{backbone.name}: {path} must have the SHA-256 {expected}, it has {digest}")


def weights_fill_every_parameter(backbone: Backbone) -> None:
    """Nothing is left to chance with transferred weights: two seeds give the same finite ones."""
    path, _ = _weights(backbone)
    module = _build(backbone, weights=path, seed=1)
    differing = _differing(module, _build(backbone, weights=path, seed=2))
    require(not differing, f"{backbone.name}: these do not come from {path}: {', '.join(differing)}")
    broken = [name for name, parameter in module.named_parameters() if not parameter.isfinite().all()]
    require(not broken, f"{backbone.name}: these are not finite in {path}: {', '.join(broken)}")


def weights_differ_from_random(backbone: Backbone) -> None:
    """Random weights are random: building without a file must not load one."""
    path, _ = _weights(backbone)
    differing = _differing(_build(backbone, weights=path), _build(backbone))
    require(bool(differing), f"{backbone.name}: weights=None gives the transferred weights, it must give random ones")


BACKBONE_CHECKS = (
    groups_compose_to_the_forward_pass,
    every_parameter_is_in_one_group,
    activations_are_valid,
    same_seed_gives_same_weights,
    forward_is_deterministic_in_eval,
    samples_do_not_mix,
    gradients_reach_the_first_group,
)
WEIGHTS_CHECKS = (
    weights_match_their_digest,
    weights_fill_every_parameter,
    weights_differ_from_random,
)


def example_shape(backbone: Backbone) -> tuple[int, ...]:
    """Return the shape of one small sample that the backbone takes."""
    if isinstance(backbone.input, ImageInput):
        side = max(backbone.input.smallest, min(backbone.input.size, PIXELS))
        return (3, side, side)
    return () if isinstance(backbone.input, TextInput) else (COLUMNS,)


def _build(backbone: Backbone, *, weights: Path | None = None, seed: int = 0) -> nn.Module:
    # Random weights need no file, but the tokenizer of a text backbone may come with it.
    missing = availability(backbone) if isinstance(backbone.input, TextInput) else missing_requirements(backbone)
    if missing:
        raise CheckSkipped(missing)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return backbone.build(input_shape=example_shape(backbone), weights=weights).eval()


def _weights(backbone: Backbone) -> tuple[Path, str]:
    path = backbone.weights.find() if backbone.weights else None
    if backbone.weights is None or path is None:
        raise CheckSkipped(availability(backbone) or "has no transferred weights")
    return path, backbone.weights.sha256


def _samples(backbone: Backbone, n: int = 3) -> Activation:
    """The first `n` of always the same samples."""
    if not isinstance(backbone.input, TextInput):
        return _noise(3, *example_shape(backbone))[:n]
    tokenizer = backbone.input.tokenizer()
    ids = tokenizer.encode(SENTENCES[:n])
    values = torch.full((n, max(map(len, ids))), tokenizer.pad_id)
    mask = torch.zeros_like(values, dtype=torch.bool)
    for row, sentence in enumerate(ids):
        values[row, : len(sentence)] = torch.tensor(sentence)
        mask[row, : len(sentence)] = True
    return Tokens(values, mask)


def _run(module: nn.Module, sample: Activation, seed: int = 0, *, train: bool = False) -> Activation:
    """One forward pass under a seed, so that only the check of determinism sees chance."""
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(train):
        torch.manual_seed(seed)
        output: Activation = module(sample)
        return output


def _run_groups(module: nn.Module, backbone: Backbone, sample: Activation) -> list[Activation]:
    activations = [sample]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for name in backbone.layer_groups:
            activations.append(module.get_submodule(name)(activations[-1]))
    return activations[1:]


def _values(activation: Activation) -> Tensor:
    """The numbers that count: padding is left out."""
    return activation.values[activation.mask] if isinstance(activation, Tokens) else activation


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True)


def _differing(one: nn.Module, other: nn.Module) -> list[str]:
    theirs = other.state_dict()
    return [name for name, value in one.state_dict().items() if not torch.equal(value, theirs[name])]


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
