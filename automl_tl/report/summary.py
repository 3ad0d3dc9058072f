"""The tables at the end of a run, and those of `show`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from automl_tl.search.source import SourceModel

MOST_CLASSES = 20  # rows of the table per class


def print_result(console: Console, result: dict[str, Any], directory: Path) -> None:
    """Print what a run found: the score with its interval, baselines, the plan, and the next steps."""
    console.print()
    if result["test"] is not None:
        _print_scores(console, result)
    if "transfer" in result and "verdict" in result["transfer"]:
        _print_transfer(console, result["transfer"])
    if result.get("copies"):
        console.print(result["copies"], markup=False, highlight=False, soft_wrap=True)
    if result.get("transfer_gain"):
        _print_gain(console, result["transfer_gain"])
    _print_best(console, result["best"])
    _print_model(console, result)
    if result["test"] is not None and len(result["task"]["classes"]) <= MOST_CLASSES:
        _print_classes(console, result["test"])
    trials, seconds = result["trials"], result["seconds"]
    promotions = result.get("promotions", 0)
    promoted = f", one was trained further {promotions} times" if promotions else ""
    console.print(
        f"{trials['complete']} trials complete{promoted}, {trials['pruned']} pruned, {trials['failed']} failed "
        f"in {seconds.get('search', 0.0):.0f} s of search ({seconds['total']:.0f} s in all)",
        highlight=False,
    )
    for line in (
        f"result:  {directory / 'result.json'}",
        f"predict: automl-tl predict {directory} INPUT --out predictions.csv",
        f"go on:   automl-tl resume {directory} --time +300",
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


def _print_scores(console: Console, result: dict[str, Any]) -> None:
    task = result["task"]
    times = result["test_opened"]
    opened = "once" if times == 1 else f"{times} times, so its score flatters a little"
    title = f"{escape(task['name'])}: test split, {task['n_test']} samples, opened {opened}"
    table = Table(title=title, title_justify="left")
    for name in ("", "macro-F1", "95 % interval", "accuracy", "recall"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("[bold]best model[/bold]", *_numbers(result["test"]), style="green")
    for name, scores in result["baselines"].items():
        table.add_row(name.replace("_", " "), *_numbers(scores))
    console.print(table)


def _print_transfer(console: Console, transfer: dict[str, Any]) -> None:
    table = Table(title="source → target: the same search with and without transferred weights", title_justify="left")
    for name in ("", "macro-F1", "95 % interval", "accuracy", "recall"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("transferred", *_numbers(transfer["transferred"]), style="green")
    table.add_row("from random", *_numbers(transfer["from_random"]))
    low, high = transfer["gain_f1_macro_ci95"]
    table.add_row("gain", f"{transfer['gain_f1_macro']:+.4f}", f"{low:+.4f} … {high:+.4f}", "", "")
    console.print(table)
    console.print(f"transfer: [bold]{transfer['verdict']}[/bold] (the interval of the paired difference decides)")


def _print_gain(console: Console, gain: dict[str, Any]) -> None:
    """What transfer won over the best that does without it."""
    low, high = gain["interval"]
    harmed = [each["name"] for each in gain["per_class"] if each["verdict"] == "negative transfer"]
    console.print(
        f"transfer gain over {gain['rival'].replace('_', ' ')}: {gain['gain']:+.4f}, 95 % interval {low:+.4f} … "
        f"{high:+.4f}: [bold]{gain['verdict']}[/bold]"
        + (f"; but worse at {escape(', '.join(harmed))}" if harmed else ""),
        highlight=False,
        soft_wrap=True,
    )


def _print_model(console: Console, result: dict[str, Any]) -> None:
    """What is handed over, where it is more than the best trial."""
    model, confirmed = result.get("model"), result["validation"].get("confirmed")
    if model is None or confirmed is None:
        return
    folds = max((each["folds"] for each in confirmed["finalists"]), default=0)
    if folds:
        console.print(
            f"confirmed: {len(confirmed['finalists'])} finalists were trained anew on {folds} folds; "
            f"{confirmed['chosen_because']}",
            highlight=False,
            soft_wrap=True,
        )
    if model["kind"] == "ensemble":
        members = ", ".join(f"trial {each['trial']} ({each['weight']:.0%})" for each in model["members"])
        console.print(f"model: an ensemble of {members}", highlight=False, soft_wrap=True)


def _numbers(scores: dict[str, Any]) -> tuple[str, ...]:
    low, high = scores["f1_macro_ci95"]
    return (
        f"{scores['f1_macro']:.4f}",
        f"{low:.4f} … {high:.4f}",
        f"{scores['accuracy']:.4f}",
        f"{scores['recall_macro']:.4f}",
    )


def _print_best(console: Console, best: dict[str, Any]) -> None:
    share = best["trainable_parameters"] / max(1, best["total_parameters"])
    table = Table(title=f"trial {best['trial']}: what to transfer, and how", title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column()
    table.add_row("backbone", f"{best['backbone']} ({best['weights']} weights)")
    table.add_row("strategy", f"{best['strategy'] or 'own plan'}" + (f"  ({best['recipe']})" if best["recipe"] else ""))
    table.add_row("layer groups", "  ".join(_group(group) for group in best["plan"]))
    reads = escape(" beside ".join([*best["joined"], _tap(best["plan"])]))
    spread = ", mean and spread" if best["pooling"] == "mean_std" else ""
    table.add_row("head", f"{escape(best['head']['name'])}, reads {reads}{spread}")
    table.add_row(
        "trained", f"{best['trainable_parameters']:,} of {best['total_parameters']:,} parameters ({share:.0%})"
    )
    if best["fit"] == "descent":
        _add_descent(table, best)
    else:
        table.add_row("fit", f"{best['fit']}, solved for, strength {best['strength']:.3g} chosen by left-out samples")
    console.print(table)


def _tap(plan: list[dict[str, Any]]) -> str:
    """The layer group whose output the head reads."""
    return str([group["group"] for group in plan if group["action"] != "drop"][-1])


def _add_descent(table: Table, best: dict[str, Any]) -> None:
    rates, keeps = best["optimizer"], best["regularization"]
    table.add_row(
        "optimizer",
        f"{rates['optimizer']}, learning rate {rates['learning_rate']:.2g}, batch {rates['batch_size']}, "
        f"{best['epochs']} epochs",
    )
    views = f" in {keeps['views']} stored views" if keeps["views"] and keeps["augmentation"] != "none" else ""
    table.add_row(
        "regularization",
        f"dropout {keeps['dropout']:.2f}, weight decay {keeps['weight_decay']:.1e}, "
        f"label smoothing {keeps['label_smoothing']:g}, L2-SP {keeps['l2_sp']:g}, "
        f"augmentation {keeps['augmentation']}{views}, mixup {keeps['mixup']:g}, patience {keeps['patience']}",
    )


def _group(group: dict[str, Any]) -> str:
    color = {"freeze": "blue", "tune": "green", "reinit": "yellow", "drop": "dim"}[group["action"]]
    return f"{escape(group['group'])}=[{color}]{group['action']}[/{color}]"


def _print_classes(console: Console, test: dict[str, Any]) -> None:
    table = Table(title="by class", title_justify="left")
    for name in ("class", "F1", "precision", "recall", "samples"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for row in test["per_class"]:
        numbers = (f"{row[name]:.3f}" for name in ("f1", "precision", "recall"))
        table.add_row(escape(row["class"]), *numbers, str(row["support"]))
    console.print(table)
