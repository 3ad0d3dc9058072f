"""Score before you train: what a linear head would reach on every tap of every backbone, in closed form.

One pass of each backbone, and one of the same architecture with random weights, to see what was transferred. The
outputs stay in the store, so a search that follows starts from them.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from automl_tl.errors import ConfigError
from automl_tl.features.task import prepare_task
from automl_tl.finish.baselines import raw_inputs_left_out
from automl_tl.report.scores import Scored, ScoreTable
from automl_tl.run import Run, crew_of, lay_out, load, space_context, stored_networks
from automl_tl.rundir import RunDirectory
from automl_tl.search.inputs import stored_network
from automl_tl.search.scores import MOST_ROWS
from automl_tl.search.survey import score_backbone

RANDOM_SEED = 0


def score_backbones(story: Run, *, random: bool = True) -> ScoreTable:
    """Score every tap of every selected backbone by training samples that are left out; nothing is trained.

    Raises
    ------
    ConfigError
        When no selected backbone has weights to transfer.
    AutomlTlError
        As a search does.
    """
    with tempfile.TemporaryDirectory(prefix="automl-tl-score-") as scratch:
        return _score(replace(story, directory=RunDirectory(Path(scratch))), random)


def _score(story: Run, random: bool) -> ScoreTable:
    config, display = story.config, story.display
    if config.source is not None:
        raise ConfigError("score reads published weights; leave `source:` out, or search, which trains on it first")
    with crew_of(story) as crew, display:
        loaded = load(story)
        for note in (*loaded.task.notes, *loaded.selection.notes):
            display.say(note)
        prepared = lay_out(story, loaded)
        context = space_context(story, loaded, prepared, "transferred", joint=False)
        networks = stored_networks(story, loaded, prepared, context, None)
        if not networks:
            raise ConfigError(
                f"no backbone here has weights to transfer to {loaded.task.modality} inputs; expected at least one; "
                "see `automl-tl plugins list` for what to install"
            )
        backbones = tuple(loaded.host.backbone(name) for name in networks)
        prepare_task(prepared, backbones, display.progress, display.warn)
        found = []
        for backbone in backbones:
            groups = context.backbones[backbone.name]
            share = config.cache.device_share
            drawn = stored_network(loaded.host, backbone, prepared, groups, None, share, random_seed=RANDOM_SEED)
            scores = [
                score_backbone(
                    loaded.host,
                    backbone,
                    stored,
                    prepared,
                    crew,
                    display.progress,
                    metric=config.search.metric,
                    seed=config.seed,
                    sitting=time.time(),
                    diagnose=True,
                )
                for stored in ([networks[backbone.name], drawn] if random else [networks[backbone.name]])
            ]
            found.append(
                Scored(
                    transferred=scores[0],
                    random=scores[1] if random else None,
                    parameters=sum(group.parameters for group in groups),
                    seconds_per_1000=1000 * scores[0].passed.network.seconds_per_row,
                    n_rows=sum(each.passed.rows for each in scores),
                )
            )
        return ScoreTable(
            task=loaded.task.name,
            metric=config.search.metric,
            n_train=min(len(loaded.task.judging), MOST_ROWS),
            raw_inputs=raw_inputs_left_out(loaded.task, metric=config.search.metric, seed=config.seed, most=MOST_ROWS),
            backbones=tuple(sorted(found, key=lambda each: -each.transferred.best.f1)),
        )
