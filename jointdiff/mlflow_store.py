"""One experiment in one MLflow store. The only module that imports mlflow, and it does so late: that costs seconds.

Everything here can be repeated, after an answer that got lost or a push that broke off, and nothing is there twice: a
run is looked up by its digest before one is made, its tags say what it holds, and a value that is sent again is the
same row, since its time is taken from what it belongs to and not from a clock.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from jointdiff.config import FirstStage, RunSpec, digest
from jointdiff.environment import UNKNOWN
from jointdiff.files import read_json
from jointdiff.report.wording import budget_name
from jointdiff.runs_view import experiment_tags

if TYPE_CHECKING:
    from jointdiff.report.best import Best

log = logging.getLogger(__name__)

RUN = "jointdiff.run"  # tag: digest of what was trained and of its code
LINES = "jointdiff.metric_lines"  # tag: lines of metrics.jsonl that the store holds
NOTE = "mlflow.note.content"  # tag: the text that MLflow shows on a run's page
CONTENT = "jointdiff.content"  # tag: digest of all that was pushed, so that what did not change is passed over
BATCH = 1000  # values, parameters and tags per request, MLflow's limit
LOADER = "jointdiff.tracking"  # module whose ``_load_pyfunc`` reads a logged model
# An SQLite file names artifacts as an MLflow server does, by no folder: they lie beside the file, wherever it is.
BESIDE = "mlflow-artifacts:/"
FOLDER = "mlartifacts"  # beside the file; also where `mlflow ui`, started there, looks for them
LOCATIONS = (  # columns of MLflow's tables that hold places of artifacts
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def watch_system(run_id: str, uri: str) -> Any:
    """Push load and memory of this machine to a run from a thread, until the run ends or the store fails."""
    import mlflow
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    mlflow.set_tracking_uri(uri)
    monitor = SystemMetricsMonitor(run_id, resume_logging=True)
    monitor.start()
    return monitor


def list_experiments(uri: str) -> list[Any]:
    """List the experiments of a store, each with its name, experiment_id and tags."""
    return list(_connect(uri).search_experiments())


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite store; None of any other store."""
    scheme, _, path = uri.partition(":///")
    return Path(path.partition("?")[0]).resolve() if scheme.partition("+")[0] == "sqlite" and path else None


def artifacts_beside(file: Path) -> Path:
    """Return the folder of the artifacts of an SQLite store."""
    return file.parent / FOLDER


def open_artifacts(artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> Any:
    """Open a place of artifacts that names no folder: beside the SQLite file of the store, or else by its server.

    MLflow itself leaves such places to servers. It finds this function by the entry point in pyproject.toml.
    """
    from mlflow import get_tracking_uri
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    file = sqlite_file(tracking_uri or get_tracking_uri())
    if file is None:
        return MlflowArtifactsRepository(artifact_uri, tracking_uri=tracking_uri, registry_uri=registry_uri)
    place = artifacts_beside(file) / unquote(urlsplit(artifact_uri).path).lstrip("/")
    return LocalArtifactRepository(place.as_uri(), tracking_uri=tracking_uri, registry_uri=registry_uri)


def _connect(uri: str) -> Any:
    """Return MLflow's client of a store, whose registered models lie in the same store."""
    import mlflow

    client = mlflow.MlflowClient(uri, registry_uri=uri)
    if file := sqlite_file(uri):
        client.search_experiments(max_results=1)  # which makes the file where there is none
        _forget_places(file)
    return client


def _forget_places(file: Path) -> None:
    """Let an SQLite store name its artifacts by no folder, where an earlier version or MLflow itself named theirs.

    Without that, the copy of a project would go on writing into the folder that it was copied from.
    """
    with closing(sqlite3.connect(file, timeout=60)) as database, database:
        # MLflow's own experiment, 0, names the folder in which the store was made, and holds nothing.
        named = (
            "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE ? OR"
            " (artifact_location LIKE '/%' AND experiment_id = 0 AND 0 NOT IN (SELECT experiment_id FROM runs))"
        )
        places = [place for (place,) in database.execute(named, (f"%/{FOLDER}",))]
        for place in places:
            for table, column in LOCATIONS:
                renamed = f"UPDATE {table} SET {column} = ? || ltrim(substr({column}, ?), '/')"  # noqa: S608 - ours
                inside = f"{renamed} WHERE {column} = ? OR substr({column}, 1, ?) = ?"
                database.execute(inside, (BESIDE, len(place) + 1, place, len(place) + 1, f"{place}/"))
    for place in places:
        if place.endswith(f"/{FOLDER}"):
            log.warning("%s named its artifacts by the folder %s; from now on they are those beside it", file, place)


class Store:
    """One experiment in one MLflow store, made where there is none.

    Args:
        uri: address of the store.
        experiment: name of the experiment.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        from mlflow.exceptions import MlflowException

        self.uri, self.name = uri, experiment
        self.client = _connect(uri)
        found = self.client.get_experiment_by_name(experiment)
        if not found:
            artifacts = BESIDE if sqlite_file(uri) else None  # a server knows its own
            try:
                self.client.create_experiment(experiment, artifact_location=artifacts)
            except MlflowException as error:  # another training of the grid was faster
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self.client.get_experiment_by_name(experiment)
            assert found
        self.experiment = found.experiment_id

    @functools.cached_property
    def summary(self) -> str:
        """Return the run that holds tables and figures. All runs lie side by side: MLflow groups no nested ones."""
        tags = {"kind": "summary"}
        return self.find_or_create(f"experiment {self.name}", name=f"{self.name} · tables and figures", tags=tags)

    def find_or_create(self, key: str, *, name: str, tags: dict[str, str], started: float | None = None) -> str:
        """Return the id of the run with this key, made where there is none, as begun at ``started`` (Unix time, s).

        A request whose answer got lost is sent again, so that two runs may be made: the fuller stays.
        """
        search = functools.partial(self.client.search_runs, [self.experiment], f"tags.`{RUN}` = '{key}'")
        if not (found := search()):
            start_time = None if started is None else int(1000 * started)
            self.client.create_run(self.experiment, start_time, tags={RUN: key, **tags}, run_name=name)
            found = search()
        kept, *others = sorted(found, key=lambda run: (-len(run.data.metrics), run.info.run_id))
        for other in others:
            self.client.delete_run(other.info.run_id)
        return kept.info.run_id

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
        """Push the lines of metrics.jsonl that the run does not hold.

        The file has no times, so that a resumed training writes the same one: a value's is the run's start and a
        millisecond per step.
        """
        run = self.client.get_run(run_id)
        lines = [line for line in metrics.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        values = []
        for line in lines[int(run.data.tags.get(LINES, 0)) :]:
            entry = json.loads(line)
            step, split = entry.pop("step"), entry.pop("split")
            time = run.info.start_time + step
            values += [(f"{split}/{name}", value, time, step) for name, value in entry.items() if _finite(value)]
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
        made_with = _flatten({"environment": record.get("environment", UNKNOWN)})
        self._batch(run_id, params=_flatten({"settings": record.get("settings", {})}), tags=made_with)
        values = {f"cost/{name}": (value, _time(cell / "run.json")) for name, value in record["cost"].items()}
        values |= _scores(cell) | _benchmark(benchmarks, run)
        self._bars(run_id, values)
        self._inputs(run_id, run, record)
        shown = {file.path for file in self.client.list_artifacts(run_id, "images")}
        for path in files:
            self.client.log_artifact(run_id, str(path), str(path.parent.relative_to(cell)).removeprefix("."))
            if path.suffix == ".png":  # once more as MLflow's own kind of image, which it shows beside other runs'
                self._image(run_id, path, shown=shown)
        for path in sorted(cell.glob("previews/*.png")):
            self._image(run_id, path, shown=shown, key="images/training", step=int(path.stem))
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
        made = _time(stage / "autoencoder.json")
        values = {f"{group}/{key}": (value, made) for group, held in measured.items() for key, value in held.items()}
        self._bars(run_id, values)
        made_with = _flatten({"environment": record.get("environment", UNKNOWN)})
        self._batch(run_id, params=_flatten(spec.model_dump(mode="json")), tags=made_with)
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

    def _image(self, run_id: str, path: Path, *, shown: set[str], key: str | None = None, step: int = 0) -> None:
        """Show a picture unless it is among those shown.

        At step 0, since MLflow puts images of several runs together where their steps are equal.
        """
        from PIL import Image

        key, time = key or f"images/{path.stem}", _time(path)
        beginning = f"images/{key.replace('/', '~')}+step+{step}+timestamp+{time}+"  # MLflow's name; the rest is chance
        if any(name.startswith(beginning) and name.endswith("+compressed.webp") for name in shown):  # sent last
            return
        with Image.open(path) as image:
            picture = image.convert("RGB")
        self.client.log_image(run_id, picture, key=key, step=step, timestamp=time, synchronous=True)

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
        """Log the model folder as it is, unless the run has it; ``LOADER`` reads it: nothing is pickled or guessed."""
        import mlflow
        from mlflow.entities import LoggedModelStatus

        files = sorted(path for path in folder.rglob("*") if path.is_file())
        content = digest([_fingerprint(path) for path in files])
        for model in self.client.search_logged_models([self.experiment], f"source_run_id = '{run_id}'"):
            if model.status != LoggedModelStatus.READY:
                self.client.delete_logged_model(model.model_id)  # a push broke off in it
            elif model.tags.get(CONTENT) == content:
                return
        before = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(self.uri)  # which sets the variable for good
        try:
            with mlflow.start_run(run_id=run_id, log_system_metrics=False):
                mlflow.pyfunc.log_model(
                    name=name,
                    loader_module=LOADER,
                    data_path=str(folder),
                    pip_requirements=["jointdiff-bench"],
                    tags={CONTENT: content, "mlflow.source.name": "jointdiff"},  # else the path of a passing script
                )
        finally:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
            if before is not None:
                os.environ["MLFLOW_TRACKING_URI"] = before

    def _bars(self, run_id: str, values: dict[str, tuple[Any, int]]) -> None:
        """Push single numbers with their times (Unix, ms): at step 0 MLflow draws bars; later, a curve of one point."""
        finite = [(name, value, time, 0) for name, (value, time) in values.items() if _finite(value)]
        self._batch(run_id, metrics=finite)

    def _batch(
        self,
        run_id: str,
        *,
        metrics: Iterable[tuple[str, float, int, int]] = (),
        params: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        """Write values in as few requests as the store accepts; the tags, which vouch for them, go last.

        MLflow's client cuts what is too long by itself, and sends the tags first.
        """
        from mlflow.entities import Metric, Param, RunTag

        values = [Metric(*value) for value in metrics]
        named = [Param(key, value) for key, value in (params or {}).items()]
        marks = [RunTag(key, value) for key, value in (tags or {}).items()]
        while len(values) + len(named) + len(marks) > BATCH:
            self.client.log_batch(run_id, metrics=values[:BATCH])
            values = values[BATCH:]
        self.client.log_batch(run_id, metrics=values, params=named, tags=marks)


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


def _time(path: Path) -> int:
    """Return when a file was written (Unix time, ms)."""
    return path.stat().st_mtime_ns // 1_000_000


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


def _scores(cell: Path) -> dict[str, tuple[float, int]]:
    """Return a cell's macro scores with their times; names of maps, rules and numbers of trials are part of theirs."""
    from jointdiff.evaluate.scores import parse_protocol, read_rows

    found = {}
    for path in sorted(cell.glob("scores/*.parquet")):
        for row in read_rows(path):
            if row["finding"] == "macro" and path.stem != "cost":
                facts = parse_protocol(row["protocol"])
                where = [facts.get(name) for name in ("map", "rule", "trials")]
                found["/".join(filter(None, [row["split"], row["metric"], *where]))] = (row["value"], _time(path))
    return found


def _benchmark(folder: Path, run: RunSpec) -> dict[str, tuple[float, int]]:
    """Return what Snakemake measured of a training job: memory, load and traffic of the whole process."""
    path = folder / "train_method" / f"{run.dataset}-{run.labels}-{run.variant}-{run.seed}.jsonl"
    if not path.is_file():
        return {}
    measured = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    return {f"system/{name}": (value, _time(path)) for name, value in measured.items()}
