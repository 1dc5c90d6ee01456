"""``jointdiff``: what this machine offers, and a trained model at hand. Light: only what needs torch imports it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from jointdiff.config import SCHEMA, ConfigError, Explanation, Generation, config_schema, load_experiment


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or 1 with one message where a user can mend what went wrong."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except (ValueError, OSError) as error:
        print(f"jointdiff {options.command}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jointdiff", description="A benchmark of joint diffusion models.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Any, among: Any = commands) -> argparse.ArgumentParser:
        text = run.__doc__.splitlines()[0]
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

    schema = command("schema", _schema)
    schema.add_argument("--out", type=Path, default=SCHEMA, help="file to write (default: %(default)s)")

    mlflow = command("mlflow", _mlflow)
    mlflow.add_argument("--results", type=Path, default=Path("results"), help="default: %(default)s")
    mlflow.add_argument("--port", type=int, default=5000, help="default: %(default)s")

    predict = command("predict", _predict)
    predict.add_argument("model", type=Path, help="model folder")
    predict.add_argument("images", type=Path, nargs="+", help="image files; grey or colour as the model was trained")
    predict.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])

    sample = command("sample", _sample)
    sample.add_argument("model", type=Path, help="model folder")
    sample.add_argument("--out", type=Path, default=Path("samples"), help="folder to write (default: %(default)s)")
    sample.add_argument("--images", type=int, default=16, help="how many (default: %(default)s)")
    sample.add_argument("--steps", type=int, default=25, help="network evaluations per image (default: %(default)s)")
    sample.add_argument("--guidance", type=float, default=1.0, help="strength of the labels (default: %(default)s)")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])

    explain = command("explain", _explain)
    explain.add_argument("model", type=Path, help="model folder")
    explain.add_argument("image", type=Path, help="image file")
    explain.add_argument("finding", help="finding to remove")
    explain.add_argument("--out", type=Path, default=Path("explanation.png"), help="picture (default: %(default)s)")
    explain.add_argument("--seed", type=int, default=0)
    explain.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    return parser


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


def _schema(options: argparse.Namespace) -> None:
    """Write the JSON Schema of configurations, with every built-in method's settings."""
    from jointdiff.files import atomic_path

    with atomic_path(options.out) as aside:
        aside.write_text(json.dumps(config_schema(), indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


def _mlflow(options: argparse.Namespace) -> None:
    """Browse the runs in MLflow, at http://127.0.0.1:5000 until Ctrl-C."""
    from jointdiff.tracking import browse_command

    command = browse_command(options.results, port=options.port)
    if command is None:
        print(f"MLflow runs at {os.environ['MLFLOW_TRACKING_URI']}: open that address in a browser.")
        return
    print(" ".join(command), flush=True)
    # Replaced rather than started, so that Ctrl-C ends the server and nothing is left behind.
    os.execv(sys.executable, [sys.executable, "-m", *command])


def _predict(options: argparse.Namespace) -> None:
    """Print each image's probabilities as one JSON object a line."""
    import torch

    from jointdiff.devices import pick_device
    from jointdiff.models import load_model

    device = pick_device(options.device)
    model = load_model(options.model).to(device)
    for path in options.images:
        with torch.no_grad():
            scores = model.predict(_read_image(path, model.data).to(device))[0].tolist()
        print(json.dumps({"image": str(path), **dict(zip(model.data.labels.names, scores, strict=True))}))


def _sample(options: argparse.Namespace) -> None:
    """Draw synthetic images: a grid, and an archive of images, labels and seeds."""
    from jointdiff.inference import generate

    settings = Generation(images=options.images, steps=options.steps, guidance=options.guidance)
    images, grid = options.out / "generated.npz", options.out / "generated.png"
    generate(options.model, out=images, picture=grid, seed=options.seed, settings=settings, device=options.device)
    print(f"wrote {images} and {grid}")


def _explain(options: argparse.Namespace) -> None:
    """Remove a finding from an image and draw what changes."""
    import numpy as np
    import torch

    from jointdiff.devices import pick_device
    from jointdiff.explain.saliency import change_map
    from jointdiff.method import Explainer, to_bytes
    from jointdiff.models import load_model
    from jointdiff.pictures import save_strips
    from jointdiff.seeding import derive

    device = pick_device(options.device)
    model = load_model(options.model).to(device)
    names = model.data.labels.names
    if options.finding not in names:
        raise ConfigError(f"{options.finding!r} is no finding of this model, which knows: {', '.join(names)}")
    if not isinstance(model, Explainer):
        raise ConfigError(f"{options.model}: {type(model).__name__} cannot remove findings; use a joint model")
    image = _read_image(options.image, model.data).to(device)
    seeds, how, k = torch.tensor([derive(options.seed, "explain")]), Explanation(), names.index(options.finding)
    edit = model.counterfactual(
        image, k, 0.0, seeds.to(device), noise_level=how.noise_level, steps=how.steps, guidance=how.guidance
    )
    with torch.no_grad():
        before, after = (float(model.predict(x)[0, k]) for x in (image, edit.images))

    def pixels(x: torch.Tensor) -> np.ndarray:
        return to_bytes(x).permute(0, 2, 3, 1).cpu().numpy()

    columns = {
        "image": pixels(image),
        f"without {options.finding}": pixels(edit.images),
        "control": pixels(edit.control),
        "change less control": change_map(edit.images, edit.control).cpu().numpy(),
    }
    title = f"{options.finding}: probability {before:.2f} before, {after:.2f} after"
    nowhere = np.zeros((1, model.data.size, model.data.size), dtype=bool)
    save_strips(columns, nowhere, options.out, rows=[options.finding], title=title)
    print(f"{title}; wrote {options.out}")


def _read_image(path: Path, data: Any) -> Any:
    """Return an image file as a tensor (1, C, size, size) in [-1, 1], resized as the model's data were."""
    import torch

    from jointdiff.data.images import Fit, decode_image
    from jointdiff.method import to_unit_range

    pixels = decode_image(path.read_bytes(), name=str(path), mode="L" if data.channels == 1 else "RGB")
    height, width = pixels.shape[:2]
    square = Fit(height, width, data.size, data.resize).image(pixels)
    return to_unit_range(torch.from_numpy(square.copy())[None].permute(0, 3, 1, 2)).contiguous()


if __name__ == "__main__":
    sys.exit(main())
