"""How well is the time of a first epoch foreseen by the layer groups that it passes? On the recorded learning curves.

A search reckons with the work of the recipe that comes next, see `automl_tl/search/work.py`. Here the seconds that
`record_curves.py` took down are held against it: the standard deviation of ln(seconds / work) over a task's
configurations, beside that of ln(seconds), which is what a guess by the average leaves.
"""

from __future__ import annotations

import argparse

import numpy as np
from results import circumstances, keep
from schedulers import CURVES, read_curves

from automl_tl.host import load_host
from automl_tl.model.groups import describe_groups
from automl_tl.search.work import BACK, BESIDES

HEAD_FIRST = ("lp_ft", "gradual_unfreezing")  # strategies that train no layer group in the first epoch
TASKS = ("emoji", "fashion")  # whose backbones need no source task


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    curves, host, rows = read_curves(CURVES), load_host(), []
    for task in TASKS:
        setting, found = curves[task]["setting"], curves[task]["configurations"]
        size = setting["image_size"]
        shares = [group.flop_share for group in describe_groups(host.backbone(setting["backbone"]), (3, size, size))]
        work = []
        for spec in (each["spec"] for each in found):
            forward = sum(shares[spec["cut"] : spec["tap"] + 1])
            work.append(BESIDES + forward + (0.0 if spec["strategy"] in HEAD_FIRST else BACK * forward))
        seconds = np.array([each["seconds"][0] for each in found])
        foreseen, average = np.std(np.log(seconds / np.array(work))), np.std(np.log(seconds))
        rows.append([task, setting["backbone"], str(len(found)), f"{foreseen:.2f}", f"{average:.2f}"])
    header = ["task", "backbone", "configurations", "ln(seconds / work)", "ln(seconds)"]
    note = "Standard deviations. The constants of `automl_tl/search/work.py` were chosen on these curves."
    keep("foreseen_work", header, rows, {"circumstances": circumstances(), "rows": rows}, note)


if __name__ == "__main__":
    main()
