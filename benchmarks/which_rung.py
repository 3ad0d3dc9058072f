"""Of a configuration that was trained in stages: is its best stage the one to keep, or its last?

The best one was chosen by the same few samples that say how good it is; the last one by nothing. Replayed on the
recorded curves of `schedulers.py`, each stage of which was also scored on many test samples: of ten configurations the
one that scored best at any stage is taken, and of it that stage or the last; or the one that scored best at its last.
"""

from __future__ import annotations

import argparse

import numpy as np
from results import circumstances, keep
from schedulers import CURVES, Pool, read_pools

DRAWN = 10  # configurations, as many as a short search tries
DRAWS = 2000
RULES = ("best stage", "its last stage", "best at the last stage")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    about = circumstances()
    scores = {pool.task: test_scores(pool) for pool in read_pools(CURVES)}
    rows = [[task, *(f"{score:.4f}" for score in found)] for task, found in scores.items()]
    mean = np.mean(list(scores.values()), 0)
    note = (
        f"Mean test macro-F1 over {DRAWS} draws of {DRAWN} configurations that were trained to the end. A search keeps "
        "the last stage, unless the metric and log loss were both better before: log loss is not in the curves."
    )
    keep(
        "which_rung",
        ["task", *RULES],
        [*rows, ["mean", *(f"{score:.4f}" for score in mean)]],
        {"circumstances": about, "rules": RULES, "test_f1_macro": {k: v.tolist() for k, v in scores.items()}},
        note,
    )


def test_scores(pool: Pool) -> np.ndarray:
    """What each of the rules ends with, on average: (3,)."""
    whole = [each for each in pool.configurations if len(each.scores) == len(pool.rungs)]
    scores, test = np.array([each.scores for each in whole]), np.array([each.test for each in whole])
    generator, found = np.random.default_rng(0), np.zeros(len(RULES))
    for _ in range(DRAWS):
        drawn = generator.choice(len(whole), DRAWN, replace=False)
        one, stage = np.unravel_index(scores[drawn].argmax(), scores[drawn].shape)
        last = scores[drawn, -1].argmax()
        found += test[drawn[one], stage], test[drawn[one], -1], test[drawn[last], -1]
    return found / DRAWS


if __name__ == "__main__":
    main()
