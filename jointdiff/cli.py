"""``jointdiff``: what this machine offers, and a trained model at hand. Light: only what needs torch imports it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from jointdiff.addresses import without_secrets
from jointdiff.config import ConfigError, Explanation, Generation, Voting, load_experiment
from jointdiff.declared import SCHEMA
from jointdiff.jobs import settle
from jointdiff.logs import show_any_text
from jointdiff.paths import snakefile

if TYPE_CHECKING:
    from jointdiff.apply import Answers

Checked = TypeVar("Checked", bound=BaseModel)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or 1 with one message where a user can mend what went wrong."""
    options = _parser().parse_args(arguments)
    show_any_text(sys.stdout, sys.stderr)
    if options.run is not _doctor:  # which looks at the environment as it is
        if passed_over := settle(os.environ):
            print(f"{passed_over} (see `jointdiff doctor`)", file=sys.stderr)
        if arguments is None and sys.getfilesystemencoding() != "utf-8":  # begun anew, names of files are read as UTF-8
            os.execv(sys.executable, [sys.executable, "-m", "jointdiff.cli", *sys.argv[1:]])  # noqa: S606 - no shell
    try:
        return options.run(options) or 0
    except (ValueError, OSError) as error:
        print(f"jointdiff {options.command}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jointdiff", description="A benchmark of joint diffusion models.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Any, among: Any = commands) -> argparse.ArgumentParser:
        text = (run.__doc__ or "").partition("\n")[0]  # none under PYTHONOPTIMIZE=2
        added = among.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    doctor = command("doctor", _doctor)
    doctor.add_argument("--results", type=Path, default=Path("results"), help="default: %(default)s")

    check = command("check", _check)
    check.add_argument("config", type=Path, help="configuration file")

    text = "Look at data sets: the built-in ones, a mirror of them, your own."
    data = commands.add_parser("data", help=text, description=text).add_subparsers(dest="subcommand", required=True)
    command("list", _list_data, data)
    look = command("check", _check_data, data)
    look.add_argument("path", type=Path, help="folder, zip or table of your data, or a configuration that names it")
    init = command("init", _init_data, data)
    init.add_argument("path", type=Path, help="folder, zip or table of your data")
    init.add_argument("--out", type=Path, help="configuration to write (default: <name of the data>.yaml)")
    mirror = command("mirror", _mirror_data, data)
    mirror.add_argument("destination", type=Path, help="folder to fill")
    mirror.add_argument("datasets", nargs="*", help="data sets, or configurations that name some (default: all)")

    command("workflow", _workflow)

    schema = command("schema", _schema)
    text = "file to write (default: jointdiff/schema.json in a source tree, otherwise schema.json)"
    schema.add_argument("--out", type=Path, help=text)

    partial = command("partial", _partial)
    partial.add_argument("config", type=Path, help="configuration file")
    partial.add_argument("--results", type=Path, default=Path("results"), help="default: %(default)s")
    partial.add_argument("--logs", type=Path, default=Path("logs"), help="default: %(default)s")

    trace = command("trace", _trace)
    trace.add_argument("table", type=Path, help="file of a table, such as results/default/tables/classification.csv")
    trace.add_argument("line", help="name of a line, or how it begins")
    trace.add_argument("column", nargs="?", help="heading of a column as in the CSV, or how it begins (default: all)")

    mlflow = command("mlflow", _mlflow)
    mlflow.add_argument("--results", type=Path, default=Path("results"), help="default: %(default)s")
    mlflow.add_argument("--port", type=int, default=5000, help="default: %(default)s")

    text = "What MLflow shows of results."
    track = commands.add_parser("track", help=text, description=text).add_subparsers(dest="subcommand", required=True)
    sync = command("sync", _sync_tracking, track)
    text = "configuration, or results folder of one or several experiments (default: all below --results)"
    sync.add_argument("path", type=Path, nargs="?", help=text)
    sync.add_argument("--results", type=Path, default=Path("results"), help="default: %(default)s")

    predict = command("predict", _predict)
    _add_images(predict)
    text = "CSV file to write, - for the screen (default: %(default)s)"
    predict.add_argument("--out", default="predictions.csv", help=text)
    text = "trials of a diffusion classifier, whose votes decide (default: %(default)s)"
    predict.add_argument("--trials", type=int, default=51, help=text)

    how, explain = Explanation(), command("explain", _explain)
    _add_images(explain)
    text = "finding or class to remove (default: what the model says is there, or else the most probable one)"
    explain.add_argument("--finding", metavar="NAME", help=text)
    explain.add_argument("--enforce", action="store_true", help="add the finding instead of removing it")
    text = "folder to write (default: %(default)s)"
    explain.add_argument("--out", type=Path, default=Path("explanations"), help=text)
    text = "noise to which an image is taken, 1 to 1000 (default: %(default)s)"
    explain.add_argument("--noise-level", type=int, default=how.noise_level, help=text)
    explain.add_argument("--steps", type=int, default=how.steps, help="steps back from there (default: %(default)s)")
    text = "strength of the edit (default: %(default)s)"
    explain.add_argument("--guidance", type=float, default=how.guidance, help=text)
    text = "noise draws averaged per image (default: %(default)s)"
    explain.add_argument("--noises", type=int, default=how.noises, help=text)
    explain.add_argument("--arrays", action="store_true", help="keep the maps and edits as .npz files as well")
    explain.add_argument("--seed", type=int, default=0)

    drawn, sample = Generation(images=16), command("sample", _sample)
    sample.add_argument("model", type=Path, help="model folder")
    text = "labels to ask for in turn, with commas between, one that has a comma in double quotes "
    text += "(default: each, and no finding)"
    sample.add_argument("--labels", metavar="NAME[,NAME]", help=text)
    sample.add_argument("--out", type=Path, default=Path("samples"), help="folder to write (default: %(default)s)")
    sample.add_argument("--images", type=int, default=drawn.images, help="how many (default: %(default)s)")
    text = "steps of the sampler per image (default: %(default)s)"
    sample.add_argument("--steps", type=int, default=drawn.steps, help=text)
    text = "strength of the labels (default: %(default)s)"
    sample.add_argument("--guidance", type=float, default=drawn.guidance, help=text)
    sample.add_argument("--seed", type=int, default=0)

    for applied in (predict, explain, sample):
        applied.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    return parser


def _add_images(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", type=Path, help="model folder")
    text = "image files, or folders of them; brought to the size and colours of the model"
    command.add_argument("images", type=Path, nargs="+", help=text)


def _doctor(options: argparse.Namespace) -> int:
    """Say what this machine offers and which step each missing piece affects."""
    from jointdiff.doctor import examine

    findings = examine(options.results)
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        mark = {"good": "ok", "absent": "--", "bad": "!!"}[finding.state]
        print(f"{mark}  {finding.what:<{width}}  {finding.found}")
        if finding.affects:
            print(f"    {'':<{width}}  {finding.affects}")
    return int(any(finding.state == "bad" for finding in findings))


def _check(options: argparse.Namespace) -> None:
    """Check a configuration, whether the data that it names are there, and count what it asks for."""
    from jointdiff.registry import describe_source

    experiment = load_experiment(options.config)
    described = {name: describe_source(data.source or name, data.options) for name, data in experiment.datasets.items()}
    print(f"{options.config} is valid: experiment {experiment.name!r}, {len(experiment.cells())} trainings")
    for name, source in described.items():
        print(f"  {name}: {source.title}" + "".join(f"; {caveat}" for caveat in source.caveats))


def _list_data(options: argparse.Namespace) -> None:
    """List the data sets that experiments can name."""
    from jointdiff.registry import load_source, sources

    for name in sources():
        source = load_source(name).SOURCE
        names = source.labels.names
        labels = f"one of {len(names)} classes" if source.labels.kind == "one_of_k" else f"findings: {len(names)}"
        count = f"{source.facts.samples:,} images, " if source.facts.samples else ""
        print(f"{name:<14} {source.title}: {count}{labels}; {source.licence}")
        if source.options:
            print(f"{'':<14} options: {', '.join(f'{key} ({value!r})' for key, value in source.options.items())}")
        if source.access:
            print(f"{'':<14} {source.access}")


def _check_data(options: argparse.Namespace) -> int:
    """Report what your own data hold and everything that is wrong with them."""
    from jointdiff.data.own.inspection import check_command

    return check_command(options.path)


def _init_data(options: argparse.Namespace) -> int:
    """Write a first configuration for your own data."""
    from jointdiff.data.own.starter import init_command

    return init_command(options.path, options.out)


def _mirror_data(options: argparse.Namespace) -> int:
    """Fill a mirror from the publishers, for a site without a way to the internet."""
    from jointdiff.data.download import mirror_datasets
    from jointdiff.registry import describe_source, load_source, sources

    wanted = {}
    for name in options.datasets or sources():
        if Path(name).suffix in (".yaml", ".yml"):
            for key, data in load_experiment(Path(name)).datasets.items():
                source = describe_source(data.source or key, data.options)
                wanted[source.name] = source
        else:
            source = load_source(name).SOURCE
            wanted[source.name] = source
    report = mirror_datasets(list(wanted.values()), options.destination)
    print(report)
    return int(not report.complete)


def _workflow(options: argparse.Namespace) -> None:
    """Print where the workflow's Snakefile is, for `snakemake --snakefile`; its profiles and examples lie beside it."""
    print(snakefile())


def _schema(options: argparse.Namespace) -> None:
    """Write the JSON Schema of configurations, with every built-in method's settings."""
    from jointdiff.files import atomic_path
    from jointdiff.schema import config_schema

    in_source_tree = snakefile().parent == SCHEMA.parents[1]
    out = options.out or (SCHEMA if in_source_tree else Path(SCHEMA.name))  # an installed package is left as it is
    with atomic_path(out) as aside:
        aside.write_text(json.dumps(config_schema(), indent=2) + "\n", encoding="utf-8")
    print(f"wrote {out}")


def _partial(options: argparse.Namespace) -> None:
    """Write tables and figures of what there is so far; missing cells are gaps with their reasons."""
    from jointdiff.report.partial import draw_partial

    experiment = load_experiment(options.config)
    results, logs = (folder / experiment.name for folder in (options.results, options.logs))
    out, gaps = draw_partial(experiment, results, logs=logs)
    missing = {(gap.cell, gap.reason): gap.log for gap in reversed(gaps)}
    for (cell, reason), log in reversed(missing.items()):
        dataset, labels, method, seed = cell
        print(f"{method} on {dataset}, labels {labels}, seed {seed}: {reason}" + (f" (see {log})" if log else ""))
    whole = len(experiment.cells()) - len({gap.cell for gap in gaps})
    print(f"{whole} of {len(experiment.cells())} cells are complete; wrote {out}")


def _trace(options: argparse.Namespace) -> None:
    """Say which score rows, runs, code and files are behind a number of a table."""
    from jointdiff.report.trace import trace

    print(trace(options.table, options.line, options.column))


def _mlflow(options: argparse.Namespace) -> None:
    """Browse the runs in MLflow: print the addresses of its pages and serve them to this machine until Ctrl-C."""
    from jointdiff.tracking import browse_command, page_links

    command = browse_command(options.results, port=options.port)
    where = f"http://127.0.0.1:{options.port}" if command else without_secrets(os.environ["MLFLOW_TRACKING_URI"])
    print(f"MLflow at {where}. Open in a browser:")
    for shows, address in page_links(options.results, port=options.port).items():
        print(f"  {shows}\n    {address}")
    if command is None:
        return
    print(without_secrets(" ".join(command)), flush=True)
    # Replaced rather than started, so that Ctrl-C ends the server and nothing is left behind.
    os.execv(sys.executable, [sys.executable, "-m", *command])  # noqa: S606 - no shell is what we want


def _sync_tracking(options: argparse.Namespace) -> None:
    """Push to MLflow what it does not show yet of one experiment or of all; repeating it changes nothing."""
    from jointdiff.tracking import sync_command

    done, failed = sync_command(options.path, results=options.results)
    for line in done:
        print(line)
    if failed:
        reasons = "; ".join(failed)
        raise ValueError(f"MLflow is not complete, results are; repeat this command once it can be: {reasons}")


def _predict(options: argparse.Namespace) -> int:
    """Write a table of probabilities of images, with their uncertainty."""
    from jointdiff.apply import list_images, predict_images

    voting = _settings(Voting, trials=options.trials)
    answers = predict_images(options.model, list_images(options.images), voting=voting, device=options.device)
    if options.out != "-":
        return _hand_over(answers, Path(options.out))
    with TemporaryDirectory() as folder:
        answers.write(Path(folder) / "predictions.csv")
        print((Path(folder) / "predictions.csv").read_text(encoding="utf-8"), end="")
    return _complain(answers)


def _explain(options: argparse.Namespace) -> int:
    """Remove findings from images and draw what changes over each; of a classifier, Grad-CAM."""
    from jointdiff.apply import explain_images, list_images

    chosen = {name: getattr(options, name) for name in ("noise_level", "steps", "guidance", "noises")}
    how = _settings(Explanation, **chosen)
    if how.steps > how.noise_level:
        raise ConfigError(f"--steps: {how.steps} steps do not fit below --noise-level {how.noise_level}")
    answers = explain_images(
        options.model,
        list_images(options.images, skip=options.out),
        out=options.out,
        how=how,
        finding=options.finding,
        enforce=options.enforce,
        seed=options.seed,
        arrays=options.arrays,
        device=options.device,
    )
    return _hand_over(answers, options.out / "explanations.csv")


def _sample(options: argparse.Namespace) -> int:
    """Draw synthetic images: each as a file, a grid, a table, and an archive of images, labels and seeds."""
    from jointdiff.apply import sample_images

    settings = _settings(Generation, images=options.images, steps=options.steps, guidance=options.guidance)
    answers = sample_images(
        options.model,
        out=options.out,
        settings=settings,
        labels=options.labels,
        seed=options.seed,
        device=options.device,
    )
    return _hand_over(answers, options.out / "samples.csv")


def _settings(kind: type[Checked], **chosen: Any) -> Checked:
    """Return settings as options ask for them.

    Raises:
        ConfigError: one is out of range; the message names the option.
    """
    try:
        return kind(**chosen)
    except ValidationError as error:
        wrong = error.errors()[0]
        option = str(wrong["loc"][0]).replace("_", "-")
        raise ConfigError(f"--{option}: {wrong['msg'].lower()}, found {wrong['input']!r}") from None


def _hand_over(answers: Answers, path: Path) -> int:
    """Write a table that is not empty, say what it comes to, and return the exit code."""
    if answers.lines:
        answers.write(path)
        print(f"{answers.summary}; wrote {path}")
    return _complain(answers)


def _complain(answers: Answers) -> int:
    for message in answers.unreadable:
        print(message, file=sys.stderr)
    if answers.unreadable:
        print(f"{len(answers.unreadable)} of the images could not be read", file=sys.stderr)
    return int(bool(answers.unreadable))


if __name__ == "__main__":
    sys.exit(main())
