"""MLflow shows what the files say. The only module that imports mlflow, and it does so late: the import costs seconds.

``metrics.jsonl``, ``run.json`` and the score tables are the truth. Everything here can be repeated: a run is looked up
by its digest before one is made, and a run's tag says how many lines of its curves it holds. A store that cannot be
reached costs one warning; the next synchronisation pushes what is missing.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jointdiff.config import FirstStage, RunSpec, digest
from jointdiff.files import read_json
from jointdiff.paths import find_cells, find_first_stages
from jointdiff.report.wording import budget_name
from jointdiff.runs_view import experiment_tags, links

if TYPE_CHECKING:
    from jointdiff.report.best import Best

log = logging.getLogger(__name__)

RUN = "jointdiff.run"  # tag: digest of what was trained and of its code
LINES = "jointdiff.metric_lines"  # tag: lines of metrics.jsonl that the store holds
NOTE = "mlflow.note.content"  # tag: the text that MLflow shows on a run's page
CONTENT = "jointdiff.content"  # tag: digest of all that was pushed, so that an unchanged cell is passed over
BATCH = 1000  # metric values per request, MLflow's limit
LIVE_AFTER = 120.0  # seconds of training from which curves are pushed while it runs; a shorter run is left to the end
LIVE_EVERY = 30.0  # seconds between such pushes


def tracking_uri(store: dict[str, Any]) -> str:
    """Return the address of the store: MLFLOW_TRACKING_URI, or else what ``create_store`` recorded."""
    return os.environ.get("MLFLOW_TRACKING_URI") or store["uri"]


def default_uri(beside: Path | str) -> str:
    """Return the address of the SQLite store in a folder."""
    return f"sqlite:///{Path(beside).resolve() / 'mlflow.db'}"


def create_store(
    experiment: str, *, beside: Path | str, enabled: bool = True, uri: str | None = None
) -> dict[str, Any]:
    """Initialise the store with the experiment and the run of its tables, and return what its writers need to know.

    Several processes on a fresh SQLite file crash in its migrations, so one job does this before any other writes.

    Args:
        experiment: name of the experiment.
        beside: folder of the default SQLite store and its artifacts.
        enabled: whether anything is tracked.
        uri: another store's address.
    """
    beside = Path(beside).resolve()
    beside.mkdir(parents=True, exist_ok=True)
    store = {
        "enabled": enabled,
        "experiment": experiment,
        "uri": uri or default_uri(beside),
        "artifacts": None if uri else (beside / "mlartifacts").as_uri(),
    }
    if enabled:
        _forgiving(lambda: _Store(store).summary)
    return store


class Tracker:
    """Told of a training's growing metrics.jsonl, pushes it from a thread of its own, now and then.

    Nothing is imported and nothing is sent before a training has taken ``LIVE_AFTER`` seconds.
    """

    def __init__(self, store: dict[str, Any], run: RunSpec, *, code_version: str) -> None:
        self.store, self.run, self.code_version = store, run, code_version
        self.due = time.monotonic() + LIVE_AFTER
        self.thread: threading.Thread | None = None
        self.broken = not store["enabled"]
        self.monitor: Any = None
        self.started = time.time()

    def __call__(self, metrics: Path) -> None:
        """Push new lines unless a push is under way, one was made just now, or one has failed."""
        now = time.monotonic()
        if self.broken or now < self.due or (self.thread is not None and self.thread.is_alive()):
            return
        self.due = now + LIVE_EVERY
        # A daemon: a hanging server must not keep a finished training alive.
        self.thread = threading.Thread(target=self._push, args=(metrics,), daemon=True)
        self.thread.start()

    def _push(self, metrics: Path) -> None:
        def push() -> bool:
            store = _Store(self.store)
            run_id = store.cell(self.run, self.code_version, started=self.started)
            try:
                store.curves(run_id, metrics)
            except FileNotFoundError:  # the training has ended meanwhile; sync_tracking pushes the rest
                return True
            if self.monitor is None:
                self.monitor = _system_metrics(run_id, store.uri)
            return True

        self.broken = not _forgiving(push)


def sync_experiment(results: Path | str, *, store: dict[str, Any]) -> dict[str, Any]:
    """Push everything below a results folder that the store does not hold, and return what was done.

    Repeating it changes nothing; an unreachable store is a warning.
    """
    results = Path(results)
    summary = {"enabled": store["enabled"], "cells": 0, "pushed": 0, "complete": not store["enabled"]}
    if not store["enabled"]:
        return summary

    def push() -> bool:
        target = _Store(store)
        cells = find_cells(results)
        for cell in cells:
            summary["cells"] += 1
            summary["pushed"] += target.push_cell(cell, benchmarks=results / "benchmarks")
        for stage in find_first_stages(results):
            summary["pushed"] += target.push_first_stage(stage)
        target.push_summary(results)
        target.register_best(cells)
        target.show(sorted({cell.parents[2].name for cell in cells}))
        return True

    summary["complete"] = bool(_forgiving(push))
    return summary


def _forgiving(action: Callable[[], Any]) -> Any:
    """Run an action on the store; return None with one warning where it fails, whatever the reason."""
    _settle_environment()
    try:
        return action()
    except Exception as error:  # a viewer must never end a training, whatever it raises
        reason = str(error).strip().splitlines() or [type(error).__name__]
        log.warning(
            "MLflow was not updated (%s). Results are complete without it; to show them later: "
            "snakemake --cores 1 --forcerun sync_tracking, with the --configfile of this run if it had one",
            reason[0][:300],
        )
        return None


def _settle_environment() -> None:
    # Short patience: the defaults retry an unreachable server for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # a lock file names one registry's addresses
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _system_metrics(run_id: str, uri: str) -> Any:
    import mlflow
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    mlflow.set_tracking_uri(uri)
    monitor = SystemMetricsMonitor(run_id, resume_logging=True)
    monitor.start()
    return monitor


class _Store:
    """One experiment in one MLflow store."""

    def __init__(self, store: dict[str, Any]) -> None:
        import mlflow

        self.uri = tracking_uri(store)
        self.client = mlflow.MlflowClient(self.uri)
        self.name = store["experiment"]
        found = self.client.get_experiment_by_name(self.name)
        if found is None:
            where = store["artifacts"] if self.uri == store["uri"] else None
            self.experiment = self.client.create_experiment(self.name, artifact_location=where)
        else:
            self.experiment = found.experiment_id

    @functools.cached_property
    def summary(self) -> str:
        """Return the run that holds tables and figures. All runs lie side by side: MLflow groups no nested ones."""
        tags = {"kind": "summary"}
        return self.find_or_create(f"experiment {self.name}", name=f"{self.name} · tables and figures", tags=tags)

    def find_or_create(self, key: str, *, name: str, tags: dict[str, str], started: float | None = None) -> str:
        """Return the id of the run with this key, made where there is none, as begun at ``started`` (Unix time, s)."""
        found = self.client.search_runs([self.experiment], f"tags.`{RUN}` = '{key}'", max_results=1)
        if found:
            return found[0].info.run_id
        start_time = None if started is None else int(1000 * started)
        made = self.client.create_run(self.experiment, start_time, tags={RUN: key, **tags}, run_name=name)
        return made.info.run_id

    def cell(self, run: RunSpec, code_version: str, *, started: float | None = None) -> str:
        """Return the id of a cell's run, made with its tags and parameters where there is none."""
        tags = {
            "kind": "training",
            "dataset": run.dataset,
            "labels": run.labels,
            "method": run.variant,
            "seed": str(run.seed),
            "code_version": code_version,
            "config_digest": run.digest,
        }
        name = f"{run.variant} · {budget_name(run.labels)} · seed {run.seed}"
        run_id = self.find_or_create(f"{run.digest} {code_version}", name=name, tags=tags, started=started)
        self._batch(run_id, params=_flatten(run.model_dump(mode="json", exclude={"settings"})))
        return run_id

    def curves(self, run_id: str, metrics: Path) -> None:
        """Push the lines of metrics.jsonl that the run does not hold."""
        tags = self.client.get_run(run_id).data.tags
        lines = [line for line in metrics.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        now, values = int(1000 * time.time()), []
        for line in lines[int(tags.get(LINES, 0)) :]:
            entry = json.loads(line)
            step, split = entry.pop("step"), entry.pop("split")
            values += [(f"{split}/{name}", value, now, step) for name, value in entry.items() if _finite(value)]
        if values:
            self._batch(run_id, metrics=values, tags={LINES: str(len(lines))})

    def push_cell(self, cell: Path, *, benchmarks: Path) -> bool:
        """Push a finished cell whole; say whether there was anything to push."""
        record = read_json(cell / "run.json")
        run, files = RunSpec.model_validate(record["spec"]), _artifacts(cell)
        content = digest([_fingerprint(path) for path in files])
        seconds = record["cost"].get("train_seconds", 0.0)
        run_id = self.cell(run, record["code_version"], started=(cell / "run.json").stat().st_mtime - seconds)
        if self.client.get_run(run_id).data.tags.get(CONTENT) == content:
            return False
        self.curves(run_id, cell / "metrics.jsonl")
        self._batch(run_id, params=_flatten({"settings": record.get("settings", {})}))
        values = {f"cost/{name}": value for name, value in record["cost"].items() if _finite(value)}
        values |= _scores(cell) | _benchmark(benchmarks, run)
        now = int(1000 * time.time())
        # Step 0 makes MLflow draw bars; a later one, a curve of one point.
        self._batch(run_id, metrics=[(name, value, now, 0) for name, value in values.items()])
        self._inputs(run_id, run, record)
        for path in files:
            self.client.log_artifact(run_id, str(path), str(path.parent.relative_to(cell)).removeprefix("."))
            if path.suffix == ".png":  # once more as MLflow's own kind of image, which it shows beside other runs'
                self._image(run_id, path)
        for path in sorted(cell.glob("previews/*.png")):
            self._image(run_id, path, key="images/training", step=int(path.stem))
        self._model(run_id, cell / "model", name=f"{run.variant}-{run.dataset}-{run.labels}-{run.seed}")
        self._batch(run_id, tags={CONTENT: content, NOTE: _card(cell / "model")})
        self._end(run_id, after=seconds)
        return True

    def push_first_stage(self, stage: Path) -> bool:
        """Push a finished autoencoder; say whether there was anything to push."""
        record = read_json(stage / "autoencoder.json")
        spec, dataset = FirstStage.model_validate(record["spec"]), stage.parent.parent.parent.name
        files = [stage / name for name in ("autoencoder.json", "metrics.jsonl", "reconstructions.png")]
        content = digest([_fingerprint(path) for path in files])
        tags = {
            "kind": "autoencoder",
            "dataset": dataset,
            "method": f"autoencoder {spec.name}",
            "seed": str(spec.seed),
            "code_version": record["code_version"],
            "config_digest": spec.digest,
        }
        name, key = f"autoencoder {spec.name} · seed {spec.seed}", f"{dataset} {spec.digest} {record['code_version']}"
        seconds = record["cost"].get("train_seconds", 0.0)
        started = (stage / "autoencoder.json").stat().st_mtime - seconds
        run_id = self.find_or_create(key, name=name, tags=tags, started=started)
        if self.client.get_run(run_id).data.tags.get(CONTENT) == content:
            return False
        self.curves(run_id, stage / "metrics.jsonl")
        measured = {"latents": record["latents"], "validation": record["held_out"], "cost": record["cost"]}
        now = int(1000 * time.time())
        values = [
            (f"{group}/{key}", value, now, 0)
            for group, entries in measured.items()
            for key, value in entries.items()
            if _finite(value)
        ]
        self._batch(run_id, metrics=values, params=_flatten(spec.model_dump(mode="json")))
        for path in files:
            self.client.log_artifact(run_id, str(path))
        self._batch(run_id, tags={CONTENT: content})
        self._end(run_id, after=seconds)
        return True

    def push_summary(self, results: Path) -> None:
        """Push tables, figures and the score table."""
        for folder in ("tables", "figures"):
            if (results / folder).is_dir():
                self.client.log_artifacts(self.summary, str(results / folder), folder)
        for name in ("scores.csv", "paper.pdf"):
            if (results / name).is_file():
                self.client.log_artifact(self.summary, str(results / name))
        self.client.set_terminated(self.summary)

    def show(self, datasets: list[str]) -> None:
        """Tell MLflow how the experiment's pages open."""
        for tag, value in experiment_tags(datasets).items():
            self.client.set_experiment_tag(self.experiment, tag, value)

    def register_best(self, cells: Sequence[Path]) -> None:
        """Register of each data set the model that is best by validation; one that is a version already stays it."""
        from mlflow.exceptions import MlflowException

        from jointdiff.report.best import choose_best

        for dataset, best in choose_best(cells).items():
            run_id = self.cell(best.run, best.code_version)
            name = f"{self.name}-{dataset}"
            try:
                self.client.create_registered_model(name, tags={"experiment": self.name, "dataset": dataset})
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            self.client.update_registered_model(name, best.why)
            found = self.client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
            version = found[0] if found else self._version(name, best, run_id)
            self.client.set_registered_model_alias(name, "best", version.version)

    def _version(self, name: str, best: Best, run_id: str) -> Any:
        """Make a version of a registered model from the one that a run logged last."""
        logged = self.client.search_logged_models([self.experiment], f"source_run_id = '{run_id}'")
        latest = max(logged, key=lambda model: model.creation_timestamp)
        tags = {"method": best.run.variant, "labels": best.run.labels, "seed": str(best.run.seed)}
        tags["validation/auroc"] = f"{best.score:.4f}"
        if (tested := self.client.get_run(run_id).data.metrics.get("test/auroc")) is not None:
            tags["test/auroc"] = f"{tested:.4f}"
        return self.client.create_model_version(
            name,
            source=latest.model_uri,
            run_id=run_id,
            model_id=latest.model_id,
            description=_card(best.cell / "model"),
            tags=tags,
        )

    def _image(self, run_id: str, path: Path, *, key: str | None = None, step: int = 0) -> None:
        """Show a picture; at step 0, since MLflow puts images of several runs together where their steps are equal."""
        from PIL import Image

        with Image.open(path) as image:
            shown = image.convert("RGB")
        self.client.log_image(run_id, shown, key=key or f"images/{path.stem}", step=step, synchronous=True)

    def _end(self, run_id: str, *, after: float) -> None:
        """End a run so many seconds after its start: its duration is that of the training, not of this push."""
        start = self.client.get_run(run_id).info.start_time
        self.client.set_terminated(run_id, end_time=int(start + 1000 * after))

    def _inputs(self, run_id: str, run: RunSpec, record: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(
            name=f"{run.dataset}-{run.size}",
            digest=record.get("data_digest", "")[:36],
            source_type="local",
            source=json.dumps({"dataset": run.dataset, "size": run.size, "options": run.options}),
            profile=json.dumps(record.get("roles", {})),
        )
        split = Dataset(
            name=f"{run.dataset}-{run.size} split",
            digest=digest([record.get("data_digest", ""), run.labels, run.seed, run.validation, run.test]),
            source_type="local",
            source=json.dumps({"labels": run.labels, "seed": run.seed}),
        )
        self.client.log_inputs(
            run_id,
            [
                DatasetInput(data, [InputTag("mlflow.data.context", "training")]),
                DatasetInput(split, [InputTag("mlflow.data.context", "split")]),
            ],
        )

    def _model(self, run_id: str, folder: Path, *, name: str) -> None:
        """Log the model folder as it is; ``_load_pyfunc`` below reads it, so nothing is pickled or guessed."""
        import mlflow

        before = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(self.uri)  # which sets the variable for good
        try:
            with mlflow.start_run(run_id=run_id, log_system_metrics=False):
                mlflow.pyfunc.log_model(
                    name=name,
                    loader_module=__name__,
                    data_path=str(folder),
                    pip_requirements=["jointdiff-bench"],
                )
        finally:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
            if before is not None:
                os.environ["MLFLOW_TRACKING_URI"] = before

    def _batch(
        self,
        run_id: str,
        *,
        metrics: Iterable[tuple[str, float, int, int]] = (),
        params: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        """Write values in as few requests as the store accepts; the tags go with the last one."""
        from mlflow.entities import Metric, Param, RunTag

        values = [Metric(*value) for value in metrics]
        while len(values) > BATCH:
            self.client.log_batch(run_id, metrics=values[:BATCH])
            values = values[BATCH:]
        self.client.log_batch(
            run_id,
            metrics=values,
            params=[Param(key, value) for key, value in (params or {}).items()],
            tags=[RunTag(key, value) for key, value in (tags or {}).items()],
        )


def _card(model: Path) -> str:
    """Return a model folder's card without the part that is for machines."""
    card = model / "README.md"
    if not card.is_file():
        return ""
    text = card.read_text(encoding="utf-8")
    return text.split("---\n", 2)[-1].strip() if text.startswith("---\n") else text


def _artifacts(cell: Path) -> list[Path]:
    """List the files of a cell that a person wants to see."""
    names = ("run.json", "metrics.jsonl", "tuning.json", "generated.png", "nearest.png", "explanations.png")
    return [cell / name for name in names if (cell / name).is_file()] + sorted(cell.glob("scores/*.parquet"))


def _fingerprint(path: Path) -> str:
    return f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        flat |= _flatten(value, f"{key}.") if isinstance(value, dict) else {key: str(value)}
    return flat


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _scores(cell: Path) -> dict[str, float]:
    """Return a cell's macro scores by name; those of a map bear its name, those of trials their rule and number."""
    from jointdiff.evaluate.scores import parse_protocol, read_rows

    found = {}
    for path in sorted(cell.glob("scores/*.parquet")):
        for row in read_rows(path):
            if row["finding"] == "macro" and _finite(row["value"]) and path.stem != "cost":
                facts = parse_protocol(row["protocol"])
                where = [facts.get(name) for name in ("map", "rule", "trials")]
                found["/".join(filter(None, [row["split"], row["metric"], *where]))] = row["value"]
    return found


def _benchmark(folder: Path, run: RunSpec) -> dict[str, float]:
    """Return what Snakemake measured of a training job: memory, load and traffic of the whole process."""
    path = folder / "train_method" / f"{run.dataset}-{run.labels}-{run.variant}-{run.seed}.jsonl"
    if not path.is_file():
        return {}
    measured = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    return {f"system/{name}": value for name, value in measured.items() if _finite(value)}


class _Predictor:
    """What MLflow serves: probabilities of images."""

    def __init__(self, folder: str) -> None:
        from jointdiff.models import load_model

        self.model = load_model(folder)

    def predict(self, images: Any, params: dict[str, Any] | None = None) -> Any:
        """Return probabilities (N, K) of float images (N, C, H, W) in [-1, 1]."""
        import numpy as np
        import torch

        with torch.no_grad():
            return self.model.predict(torch.from_numpy(np.asarray(images, dtype=np.float32))).numpy()


def _load_pyfunc(folder: str) -> _Predictor:
    """Open a logged model folder (MLflow looks for this name)."""
    return _Predictor(folder)


def browse_command(folder: Path | str, *, host: str = "127.0.0.1", port: int = 5000) -> list[str] | None:
    """Return the command that shows the store of a results folder in a browser; None where a server runs already.

    Raises:
        ValueError: nothing has been tracked there yet.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or default_uri(folder)
    if uri.startswith("http"):
        return None
    if uri == default_uri(folder) and not (Path(folder) / "mlflow.db").is_file():
        raise ValueError(f"{Path(folder) / 'mlflow.db'} does not exist yet: the first run of the workflow makes it")
    # One worker is enough for one reader; four, the default, each import for seconds.
    return ["mlflow", "ui", "--backend-store-uri", uri, "--host", host, "--port", str(port), "--workers", "1"]


def page_links(folder: Path | str, *, host: str = "127.0.0.1", port: int = 5000) -> dict[str, str]:
    """Return addresses of the pages that show each experiment of a results folder's store, by what they show.

    Raises:
        ValueError: the server that MLFLOW_TRACKING_URI names does not answer.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    _settle_environment()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or default_uri(folder)
    server = uri if uri.startswith("http") else f"http://{host}:{port}"
    try:
        experiments = mlflow.MlflowClient(uri).search_experiments()
    except MlflowException as error:
        raise ValueError(f"MLFLOW_TRACKING_URI: {uri} does not answer ({str(error).splitlines()[0][:200]})") from error
    return {
        f"{experiment.name}, {page}": address
        for experiment in experiments
        for page, address in links(server, experiment.experiment_id, experiment.tags).items()
    }
