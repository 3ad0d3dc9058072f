"""The command line: parse, call, print. Help and `plugins list` answer without torch.

Exit codes: 0 done, 2 the user can mend it (one clear message, nothing lost), 130 interrupted, 1 a bug.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from automl_tl import __version__
from automl_tl.cache_cli import cache_app
from automl_tl.config import RunConfig, load_config, validate
from automl_tl.engine.importing import importing
from automl_tl.errors import AutomlTlError
from automl_tl.plugins_cli import plugins_app

app = typer.Typer(
    name="automl-tl",
    help="Find what to transfer from a pretrained model to your data, and how.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(plugins_app, name="plugins")
app.add_typer(cache_app, name="cache")

CONFIG_SUFFIXES = (".yaml", ".yml")


@app.command()
def search(
    target: Annotated[str, typer.Argument(metavar="CONFIG.yaml|DATA", help="A configuration, or just your data.")],
    label: Annotated[str | None, typer.Option(metavar="C", help="The label column of a table.")] = None,
    test: Annotated[str | None, typer.Option(metavar="PATH", help="Data held back as the test split.")] = None,
    unlabeled: Annotated[
        str | None, typer.Option(metavar="PATH", help="Further samples without labels, to learn from as well.")
    ] = None,
    time: Annotated[float | None, typer.Option(metavar="S", help="Seconds to search.")] = None,
    trials: Annotated[int | None, typer.Option(metavar="N", help="Trials to run.")] = None,
    slots: Annotated[
        str | None, typer.Option(metavar="SPEC", help="auto, a number, cpu*2, cuda:0*2,cuda:1 or inline.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of splits, sampler and trials.")] = None,
    run_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the run keeps everything.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b=c", help="Set any key of the configuration.")
    ] = None,
    plugins_dir: Annotated[
        list[Path] | None, typer.Option(metavar="D", help="A folder of single-file plugins.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show configuration, splits and space; run nothing.")
    ] = False,
) -> None:
    """Search what to transfer, and how; keep the trained model and its honest test F1."""
    config, base = _configuration(target, set_ or [])
    config = _with_options(
        config,
        data={"label": label, "test": test, "unlabeled": unlabeled},
        search={"seconds": time, "trials": trials},
        top={"slots": slots, "seed": seed, "run_dir": run_dir},
        plugins_dirs=plugins_dir or [],
    )
    console = Console()
    if dry_run:
        from automl_tl import api

        api.dry_run(config, console, base=base)
        return
    from automl_tl.search.crew import open_crew

    with open_crew(config.slots) as crew:  # the children import torch while this process does
        with importing():
            from automl_tl import api

        api.search(config, console=console, base=base, crew=crew)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    trials: Annotated[
        str | None, typer.Option(metavar="+N", help="More trials (+10), or how many in all (40).")
    ] = None,
    time: Annotated[
        str | None, typer.Option(metavar="+S", help="More seconds (+300), or how many in all (900).")
    ] = None,
    slots: Annotated[str | None, typer.Option(metavar="SPEC", help="Other slots than the run began with.")] = None,
) -> None:
    """Go on with a run that was stopped, or extend one that is finished."""
    from automl_tl import api

    api.resume(run, trials=trials, seconds=time, slots=slots, console=Console())


@app.command()
def show(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]) -> None:
    """Print the result of a finished run again."""
    from automl_tl import api

    api.show(run, Console())


@app.command()
def score(
    target: Annotated[str, typer.Argument(metavar="CONFIG.yaml|DATA", help="A configuration, or just your data.")],
    label: Annotated[str | None, typer.Option(metavar="C", help="The label column of a table.")] = None,
    test: Annotated[str | None, typer.Option(metavar="PATH", help="Data held back as the test split.")] = None,
    slots: Annotated[str | None, typer.Option(metavar="SPEC", help="As for search.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b=c", help="Set any key of the configuration.")
    ] = None,
    plugins_dir: Annotated[
        list[Path] | None, typer.Option(metavar="D", help="A folder of single-file plugins.")
    ] = None,
    random: Annotated[bool, typer.Option(help="Compare with the same architecture at random weights.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain data.")] = False,
) -> None:
    """Score every tap of every backbone without training, and see what was transferred."""
    config, base = _configuration(target, set_ or [])
    config = _with_options(
        config,
        data={"label": label, "test": test},
        search={},
        top={"slots": slots},
        plugins_dirs=plugins_dir or [],
    )
    from automl_tl.search.crew import open_crew

    console = Console()
    with open_crew(config.slots) as crew:
        with importing():
            from automl_tl import api
            from automl_tl.report.scores import print_scores, scores_json

        quiet = Console(quiet=True)
        table = api.score(config, console=quiet if as_json else console, base=base, crew=crew, random=random)
    if as_json:
        console.print_json(data=scores_json(table))
    else:
        print_scores(console, table)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    input_: Annotated[
        Path, typer.Argument(metavar="INPUT", help="Images, a table or an .npz like the ones searched on.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The CSV to write.")] = Path("predictions.csv"),
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out unreadable samples instead of stopping.")
    ] = False,
    views: Annotated[
        int, typer.Option(metavar="K", min=0, help="Average over K changed copies of each sample as well.")
    ] = 0,
) -> None:
    """Write the class and the probability of every class for each sample."""
    from automl_tl import api

    written = api.predict_file(run, input_, out, on_bad_sample="skip" if skip_bad else "error", views=views)
    Console().print(f"{written} predictions: {out}", markup=False, highlight=False, soft_wrap=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"automl-tl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options of the program itself."""


def main() -> None:
    """Run the command line; turns the errors that a user can mend into one message and exit code 2."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in the slots' children, see engine.slots
    stderr = Console(stderr=True)
    try:
        app()
    except AutomlTlError as error:
        stderr.print(Text(f"error: {error}", style="red"), soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _configuration(target: str, overrides: list[str]) -> tuple[RunConfig, Path | None]:
    """A YAML file is a configuration; anything else is data, with everything at its default."""
    if target.lower().endswith(CONFIG_SUFFIXES):
        return load_config(Path(target), overrides), Path(target).parent
    return load_config({"data": {"path": target}}, overrides), None


def _with_options(
    config: RunConfig,
    *,
    data: dict[str, Any],
    search: dict[str, Any],
    top: dict[str, Any],
    plugins_dirs: list[Path],
) -> RunConfig:
    """The configuration with the options that were given; an option beats the file."""
    values = config.model_dump()
    for section, options in (("data", data), ("search", search)):
        values[section] |= {key: value for key, value in options.items() if value is not None}
    values |= {key: value for key, value in top.items() if value is not None}
    values["plugins"]["dirs"] = [*values["plugins"]["dirs"], *plugins_dirs]
    return validate(values, "the command line")
