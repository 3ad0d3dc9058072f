"""What is printed at the end of a run, on one screen, and by `show`; `result.json` holds more."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from automl_tl.search.source import SourceModel

COLORS = {"freeze": "blue", "tune": "green", "reinit": "yellow", "drop": "dim"}
MOST_CLASSES = 12  # whose F1 is shown, the lowest ones


def print_result(console: Console, result: dict[str, Any], directory: Path) -> None:
    """Print what a run found: the score beside all baselines, what transfer did, the model, and the next steps."""
    console.print()
    if result["test"] is not None:
        _print_scores(console, result)
    _print_findings(console, result)
    if "transfer" in result and "verdict" in result["transfer"]:
        _print_transfer(console, result["transfer"])
    if verdict := result.get("source", {}).get("verdict"):
        style = "yellow" if verdict["flagged"] else ""
        console.print(f"source: {verdict['sentence']}", style=style, markup=False, highlight=False, soft_wrap=True)
    _print_best(console, result["best"])
    trials, seconds = result["trials"], result["seconds"]
    promotions = result.get("promotions", 0)
    promoted = f", {promotions} promotion{'s' if promotions > 1 else ''}" if promotions else ""
    console.print(
        f"{trials['complete']} trials complete{promoted}, {trials['pruned']} pruned, {trials['failed']} failed "
        f"in {seconds.get('search', 0.0):.0f} s of search ({seconds['total']:.0f} s in all)",
        highlight=False,
    )
    quoted = shlex.quote(str(directory))  # these lines are for copying into a shell
    for line in (
        f"result:  {directory / 'result.json'}",
        f"predict: automl-tl predict {quoted} INPUT --out predictions.csv",
        f"go on:   automl-tl resume {quoted} --time +300",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_source(console: Console, model: SourceModel) -> None:
    """Print how good a source model is on source data held back."""
    scores = model.scores
    console.print(
        f"source task ({model.backbone}): held-back accuracy {scores['accuracy']:.4f}, "
        f"recall {scores['recall_macro']:.4f}, macro-F1 {scores['f1_macro']:.4f}",
        highlight=False,
        soft_wrap=True,
    )


def _named_lines(title: str | None = None) -> Table:
    """A table of lines with a name each, which break between words."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    return table


def _print_findings(console: Console, result: dict[str, Any]) -> None:
    """What there is to know about the score, a line each."""
    test, table = result["test"], _named_lines()
    if test is not None:
        table.add_row("accuracy", f"{test['accuracy']:.4f}, recall {test['recall_macro']:.4f}")
        table.add_row("other seeds", _other_seeds(test))
        table.add_row("lowest F1", _lowest(test["per_class"]))
    if result.get("missing_baselines"):
        table.add_row("no baseline", _missing(result["missing_baselines"]))
    if left_out := result["task"].get("n_left_out"):
        n = result["task"]["n_train"] + result["task"]["n_validation"]
        table.add_row("samples", f"learned from {n:,} of {n + left_out:,}, as there was no time for more")
    for name, text in _learned_from_fewer(result):
        table.add_row(name, text)
    if result["transfer_gain"]:
        transferred = result["best"]["weights"] == "transferred"
        table.add_row("transfer" if transferred else "gain", _gain_over(result["transfer_gain"], transferred))
    if result.get("feature_gain_by_depth"):
        gains = result["feature_gain_by_depth"]
        table.add_row("by depth", _by_depth(gains, result["feature_gain_gone_from"]))
    table.add_row("validation", _validation(result))
    if result.get("copies"):
        table.add_row("copies", escape(result["copies"]))
    for name, text in _choice(result):
        table.add_row(name, text)
    console.print(table)


def _print_scores(console: Console, result: dict[str, Any]) -> None:
    task = result["task"]
    times = result["test_opened"]
    opened = "once" if times == 1 else f"{times} times, so its score flatters a little"
    title = f"{escape(task['name'])}: test split, {task['n_test']} samples, opened {opened}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    for name in ("", "macro-F1", "95 % interval", "ours above", "95 % interval"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    table.add_row("[bold]best model[/bold]", *_numbers(result["test"]), "", "", style="green")
    ranked = sorted(result["baselines"].items(), key=lambda item: -item[1]["f1_macro"])
    for name, scores in ranked:
        table.add_row(_plain(name), *_numbers(scores), *_gain(scores))
    console.print(table)


def _plain(name: str) -> str:
    return escape(name.replace("_", " ").replace("finetuning", "fine-tuning"))


def _interval(interval: list[float], *, signed: bool = False) -> str:
    low, high = interval
    return f"{low:+.3f} … {high:+.3f}" if signed else f"{low:.3f} … {high:.3f}"


def _numbers(scores: dict[str, Any]) -> tuple[str, str]:
    return f"{scores['f1_macro']:.4f}", _interval(scores["f1_macro_ci95"])


def _gain(scores: dict[str, Any]) -> tuple[str, str]:
    """By how much a result is above a baseline; nothing of an older run, which did not say."""
    if "gain_f1_macro" not in scores:
        return "", ""
    return f"{scores['gain_f1_macro']:+.4f}", _interval(scores["gain_f1_macro_ci95"], signed=True)


def _other_seeds(test: dict[str, Any]) -> str:
    """What another seed would have changed."""
    if test.get("refits") is None:
        why = test.get("seeds_missing") or "there was no time to train it from others"
        return f"{why}, so the intervals are of this one alone"
    if len(test["refits"]) == 1:
        return "give the same model: it is solved for"
    return (
        f"F1 of {len(test['refits'])} has a standard deviation of {test['seed_sd']:.4f}, which the intervals allow for"
    )


def _lowest(per_class: list[dict[str, Any]]) -> str:
    """F1 of the classes, the lowest first."""
    ranked = sorted(per_class, key=lambda row: float(row["f1"]))
    shown = ", ".join(f"{escape(row['class'])} {row['f1']:.3f}" for row in ranked[:MOST_CLASSES])
    return shown + (f" (of {len(ranked)} classes)" if len(ranked) > MOST_CLASSES else "")


def _missing(missing: dict[str, str]) -> str:
    """Baselines that there might be, by why they are not."""
    groups = []
    for why in dict.fromkeys(missing.values()):
        names = [_plain(name) for name, other in missing.items() if other == why]
        groups.append(f"{', '.join(names)}: {escape(why)}")
    return "; ".join(groups)


def _learned_from_fewer(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Baselines that learned from a part of the samples, which says how to read what is above them."""
    n = result["task"]["n_train"] + result["task"]["n_validation"]
    for name, scores in result["baselines"].items():
        if scores.get("n_train", n) < n:
            few = f"{scores['n_train']:,} of {n:,} samples"
            yield _plain(name), f"learned from {few}, so what is above it is a little flattered"


def _gain_over(gain: dict[str, Any], transferred: bool) -> str:
    """What was won over the best that does without transfer, and at which classes transfer lost."""
    beside = f"{gain['gain']:+.4f} over {_plain(gain['rival'])}, {_interval(gain['interval'], signed=True)}"
    if not transferred:
        return f"{beside} (the best model starts from random weights)"
    harmed = [each for each in gain["per_class"] if each["verdict"] == "negative transfer"]
    named = ", ".join(f"{escape(each['name'])} ({each['gain']:+.3f})" for each in harmed)
    harm = f"; negative at {named}" if harmed else "; worse at no class for sure"
    return f"{beside}: [bold]{gain['verdict']}[/bold]{harm}"


def _by_depth(gains: list[dict[str, Any]], gone_from: str | None) -> str:
    """What features gained over those of random weights, from the first layer group to the last."""
    most = max(gains, key=lambda each: float(each["gain"]))
    shown = ", ".join(
        f"{'at most ' if each is most else ''}{each['gain']:+.2f} at {escape(each['layer_group'])}"
        for each in gains
        if each in (gains[0], most, gains[-1])
    )
    gone = "" if gone_from is None else f"; gone from {escape(gone_from)} on"
    return f"features gain {shown} over random weights{gone}"


def _validation(result: dict[str, Any]) -> str:
    """What the score was before the test split was opened, and by how much it is expected to flatter."""
    metric, confirmed = result["metric"], result["validation"].get("confirmed") or {}
    known = {each["trial"]: each[metric] for each in confirmed.get("finalists", ())}
    score = known.get(result["best"]["trial"], result["validation"][metric])
    if "optimism" not in confirmed or len(known) < 2:
        return f"{metric} {score:.4f}"
    lucky = f"expected to flatter by {confirmed['optimism']:.4f}, because it is the best of {len(known)}"
    return f"{metric} {score:.4f}, {lucky}"


def _print_transfer(console: Console, transfer: dict[str, Any]) -> None:
    title = "source → target: the same search with and without transferred weights"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    for name in ("", "macro-F1", "95 % interval", "accuracy", "recall"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for name, style in (("transferred", "green"), ("from_random", None)):
        scores = transfer[name]
        others = f"{scores['accuracy']:.4f}", f"{scores['recall_macro']:.4f}"
        table.add_row(_plain(name), *_numbers(scores), *others, style=style)
    gain = _interval(transfer["gain_f1_macro_ci95"], signed=True)
    table.add_row("gain", f"{transfer['gain_f1_macro']:+.4f}", gain, "", "")
    console.print(table)
    console.print(f"transfer: [bold]{transfer['verdict']}[/bold] (the interval of the paired difference decides)")


def _choice(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """How the model was chosen, and what is handed over where it is more than the best trial."""
    model, confirmed = result.get("model"), result["validation"].get("confirmed")
    if model is None or confirmed is None:
        return
    folds, several = max((each["folds"] for each in confirmed["finalists"]), default=0), len(model["members"]) > 1
    if folds:
        number = len(confirmed["finalists"])
        finalists = f"{number} finalist{'s' if number > 1 else ''}, trained anew on {folds} folds"
        yield "confirmed", finalists if several else f"{finalists}; {confirmed['chosen_because']}"
    gain = confirmed.get("trained_gain")
    if gain is not None:
        share = confirmed["trained_share"]
        beside = f"{gain['gain']:+.4f} ± {gain['standard_error']:.4f} beside frozen features"
        yield "networks", f"{beside}: {f'{share:.0%} of the model' if share else 'left out'}"
    if model["kind"] == "ensemble":
        members = ", ".join(f"trial {each['trial']} ({each['weight']:.0%})" for each in model["members"])
        yield "model", f"an ensemble of {members}"
    if model["kind"] == "soup":
        averaged = model["members"][0]["averaged"]
        trials = ", ".join(map(str, averaged["trials"]))
        rest = f", {averaged['share']:.0%} of the way from where they began" if averaged["share"] < 1 else ""
        yield "model", f"the averaged weights of trial {trials}{rest}"


def _print_best(console: Console, best: dict[str, Any]) -> None:
    share = best["trainable_parameters"] / max(1, best["total_parameters"])
    table = _named_lines(f"trial {best['trial']}: what to transfer, and how")
    table.add_row("backbone", f"{best['backbone']} ({best['weights']} weights)")
    table.add_row("strategy", f"{best['strategy'] or 'own plan'}" + (f"  ({best['recipe']})" if best["recipe"] else ""))
    table.add_row("layer groups", "  ".join(_groups(best["plan"])))
    reads = escape(" beside ".join([*best["joined"], _tap(best["plan"])]))
    spread = ", mean and spread" if best["pooling"] == "mean_std" else ""
    table.add_row("head", f"{escape(best['head']['name'])}, reads {reads}{spread}")
    table.add_row(
        "trained", f"{best['trainable_parameters']:,} of {best['total_parameters']:,} parameters ({share:.0%})"
    )
    if best["fit"] == "descent":
        _add_descent(table, best)
    else:
        strength = f", strength {best['strength']:.3g} chosen by left-out samples" if best["strength"] else ""
        table.add_row("fit", f"{best['fit']}, solved for{strength}")
    console.print(table)


def _tap(plan: list[dict[str, Any]]) -> str:
    """The layer group whose output the head reads."""
    return str([group["group"] for group in plan if group["action"] != "drop"][-1])


def _add_descent(table: Table, best: dict[str, Any]) -> None:
    rates, keeps, further = best["optimizer"], best["regularization"], best.get("further_epochs")
    table.add_row(
        "optimizer",
        f"{rates['optimizer']}, learning rate {rates['learning_rate']:.2g}, batch {rates['batch_size']}, "
        f"{best['epochs']} epochs" + (f" and {further} more with all samples" if further else ""),
    )
    views = f" in {keeps['views']} stored views" if keeps["views"] and keeps["augmentation"] != "none" else ""
    table.add_row(
        "regularization",
        f"dropout {keeps['dropout']:.2f}, weight decay {keeps['weight_decay']:.1e}, "
        f"label smoothing {keeps['label_smoothing']:g}, L2-SP {keeps['l2_sp']:g}, "
        f"augmentation {keeps['augmentation']}{views}, mixup {keeps['mixup']:g}, patience {keeps['patience']}",
    )


def _groups(plan: list[dict[str, Any]]) -> list[str]:
    """The actions of a plan, those in a row that are alike together."""
    shown = []
    for action, groups in groupby(plan, key=lambda group: str(group["action"])):
        names = [escape(group["group"]) for group in groups]
        span = names[0] if len(names) == 1 else f"{names[0]}…{names[-1]}"
        shown.append(f"{span}=[{COLORS[action]}]{action}[/{COLORS[action]}]")
    return shown
