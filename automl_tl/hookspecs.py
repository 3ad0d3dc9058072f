"""The three hooks. A plugin implements those it needs, as plain functions marked with `automl_tl.plugin.hookimpl`.

Each hook registers values and is called without arguments, once per process: what it returns is looked up by name ever
after, so nothing here runs while a model trains. Finding plugins and checking what they return is in `host`.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from automl_tl.plugin import Backbone, FreezingStrategy, Head

hookspec = pluggy.HookspecMarker("automl_tl")


@hookspec
def automl_tl_backbones() -> Iterable[Backbone]:
    """Register backbones: feature extractors made of named layer groups.

    Returns:
        Any iterable of `Backbone`, also an empty one; a generator will do. The names must be Python identifiers that no
        other plugin uses for a backbone.

    Called:
        Once per process, at the start: by the command line, by a search, and by each of its child processes. So it must
        be quick and the same every time; import heavy libraries inside `build`, and don't read or fetch weights here.

    Raises:
        Nothing, if it can help it. Whatever it raises, like whatever its module raises at import, is recorded: the
        plugin is left out, and a `PluginError` quotes the reason when somebody asks for a name that is not there.

    Example:
        A perceptron that a run trains on its source task, then transfers:

        >>> from automl_tl.plugin import Backbone, TabularInput, hookimpl
        >>> def build(*, input_shape, weights):
        ...     from collections import OrderedDict
        ...     import torch
        ...     from torch import nn
        ...     module = nn.Sequential(OrderedDict(
        ...         layer1=nn.Sequential(nn.Linear(*input_shape, 32), nn.ReLU()),
        ...         layer2=nn.Sequential(nn.Linear(32, 16), nn.ReLU()),
        ...     ))
        ...     if weights is not None:
        ...         module.load_state_dict(torch.load(weights, weights_only=True))
        ...     return module
        >>> @hookimpl
        ... def automl_tl_backbones():
        ...     yield Backbone(
        ...         name="perceptron",
        ...         description="two hidden layers",
        ...         input=TabularInput(),
        ...         layer_groups=("layer1", "layer2"),
        ...         build=build,
        ...     )
        >>> [perceptron] = automl_tl_backbones()
        >>> perceptron.build(input_shape=(7,), weights=None)[0]
        Sequential(
          (0): Linear(in_features=7, out_features=32, bias=True)
          (1): ReLU()
        )

    .. versionadded:: 0.1
    """
    return ()


@hookspec
def automl_tl_heads() -> Iterable[Head]:
    """Register heads: modules from the pooled features of the tapped layer group to the task's logits.

    Returns:
        Any iterable of `Head`, also an empty one. The names must be Python identifiers that no other plugin uses for a
        head.

    Called:
        Once per process, at the start, also in every child process of a search; `build` is called once per trial.

    Raises:
        As `automl_tl_backbones`.

    Example:
        A bottleneck whose width the search chooses:

        >>> from automl_tl.plugin import Head, hookimpl
        >>> def build(trial, *, in_features, n_outputs):
        ...     from torch import nn
        ...     width = trial.suggest_int("width", 8, 128, log=True)
        ...     return nn.Sequential(nn.Linear(in_features, width), nn.Linear(width, n_outputs))
        >>> @hookimpl
        ... def automl_tl_heads():
        ...     return [Head(name="bottleneck", description="two linear layers", build=build)]
        >>> from optuna.trial import FixedTrial
        >>> [bottleneck] = automl_tl_heads()
        >>> bottleneck.build(FixedTrial({"width": 16}), in_features=512, n_outputs=3)[1]
        Linear(in_features=16, out_features=3, bias=True)

    .. versionadded:: 0.1
    """
    return ()


@hookspec
def automl_tl_freezing_strategies() -> Iterable[FreezingStrategy]:
    """Register freezing strategies: pure functions that decide what happens to each layer group.

    Returns:
        Any iterable of `FreezingStrategy`, also an empty one. The names must be Python identifiers that no other plugin
        uses for a freezing strategy.

    Called:
        Once per process, at the start, also in every child process of a search; `plan` is called once per trial.

    Raises:
        As `automl_tl_backbones`.

    Example:
        Freeze the first groups, re-initialize the last one:

        >>> from automl_tl.plugin import FreezingStrategy, GroupPlan, TransferPlan, hookimpl
        >>> def plan(trial, groups, context):
        ...     frozen = trial.suggest_int("frozen", 0, len(groups) - 1)
        ...     actions = ["freeze"] * frozen + ["tune"] * (len(groups) - 1 - frozen) + ["reinit"]
        ...     return TransferPlan(tuple(
        ...         GroupPlan(group=group.name, action=action) for group, action in zip(groups, actions)
        ...     ))
        >>> @hookimpl
        ... def automl_tl_freezing_strategies():
        ...     return [FreezingStrategy(name="fresh_top", description="re-initialize the last group", plan=plan)]
        >>> from optuna.trial import FixedTrial
        >>> from automl_tl.plugin import LayerGroup, PlanContext
        >>> groups = [LayerGroup(name=name, parameters=100, flop_share=0.5) for name in ("stem", "top")]
        >>> context = PlanContext(backbone="b", modality="image", n_train=100, n_classes=2, max_epochs=5)
        >>> [fresh_top] = automl_tl_freezing_strategies()
        >>> [group.action for group in fresh_top.plan(FixedTrial({"frozen": 1}), groups, context)]
        ['freeze', 'reinit']

    .. versionadded:: 0.1
    """
    return ()
