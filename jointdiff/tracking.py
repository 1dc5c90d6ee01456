"""MLflow shows what the files say: when that is pushed, and what happens where the store does not answer.

``metrics.jsonl``, ``run.json`` and the score tables are the truth. A store that cannot be reached costs one warning;
the next synchronisation pushes what is missing (``jointdiff.mlflow_store``), and nothing twice.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from jointdiff.addresses import holds_password, without_secrets
from jointdiff.config import RunSpec, load_experiment
from jointdiff.files import read_json, write_json
from jointdiff.mlflow_store import Store, artifacts_beside, list_experiments, sqlite_file, watch_system
from jointdiff.paths import find_cells, find_first_stages
from jointdiff.runs_view import links

log = logging.getLogger(__name__)

LIVE_AFTER = 120.0  # seconds of training from which curves are pushed while it runs; a shorter run is left to the end
LIVE_EVERY = 30.0  # seconds between such pushes
LIVE_AGAIN = 600.0  # seconds from a push that failed to the next one
PATIENCE = 10  # seconds for an answer while a training runs
LONG_PATIENCE = 60  # seconds for an answer in a synchronisation, which sends models and may share a busy server


def tracking_uri(store: dict[str, Any]) -> str:
    """Return the address of the store: MLFLOW_TRACKING_URI, or else what ``create_store`` recorded.

    The user and password of a server's address move to the variables that MLflow reads: it repeats addresses in errors.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or store["uri"]
    parts = urlsplit(uri)
    if not parts.scheme.startswith("http") or parts.password is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username or "")
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


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
    }
    if enabled:
        _forgiving(lambda: _open(store).summary)
    return store


def write_store(path: Path | str, store: dict[str, Any]) -> None:
    """Write what ``create_store`` returned to ``<results>/<experiment>/tracking/store.json``.

    The SQLite store of the results folder is null there, so that a copy or a moved project has its own.
    """
    default = default_uri(Path(path).parents[2])
    write_json(path, {**store, "uri": None if store["uri"] == default else store["uri"]})


def read_store(path: Path | str) -> dict[str, Any]:
    """Read what ``write_store`` wrote; earlier versions wrote where the SQLite store and its artifacts lay then."""
    store = read_json(path)
    if store["uri"] is None or store.pop("artifacts", None):
        store["uri"] = default_uri(Path(path).parents[2])
    return store


def _open(store: dict[str, Any]) -> Store:
    return Store(tracking_uri(store), store["experiment"])


class Tracker:
    """Told of a training's growing metrics.jsonl, pushes it from a thread of its own, now and then.

    Nothing is imported and nothing is sent before a training has taken ``LIVE_AFTER`` seconds.
    """

    def __init__(self, store: dict[str, Any], run: RunSpec, *, code_version: str) -> None:
        self.store, self.run, self.code_version = store, run, code_version
        self.due = time.monotonic() + LIVE_AFTER
        self.thread: threading.Thread | None = None
        self.failed = False  # of which one warning is enough
        self.monitor: Any = None
        self.started = time.time()

    def __call__(self, metrics: Path) -> None:
        """Push new lines unless a push is under way, one was made just now, or one failed a while ago."""
        now = time.monotonic()
        if not self.store["enabled"] or now < self.due or (self.thread is not None and self.thread.is_alive()):
            return
        self.due = now + LIVE_EVERY
        # A daemon: a hanging server must not keep a finished training alive.
        self.thread = threading.Thread(target=self._push, args=(metrics,), daemon=True)
        self.thread.start()

    def _push(self, metrics: Path) -> None:
        def push() -> bool:
            store = _open(self.store)
            run_id = store.cell(self.run, self.code_version, started=self.started)
            try:
                store.curves(run_id, metrics)
            except FileNotFoundError:  # the training has ended meanwhile; sync_tracking pushes the rest
                return True
            if self.monitor is None:
                self.monitor = watch_system(run_id, store.uri)
            return True

        if not _forgiving(push, quiet=self.failed):
            self.failed, self.due = True, time.monotonic() + LIVE_AGAIN


def sync_experiment(results: Path | str, *, store: dict[str, Any], strict: bool = False) -> dict[str, Any]:
    """Push everything below a results folder that the store does not hold, and return what was done.

    Repeating it changes nothing; an unreachable store is a warning.

    Args:
        results: results folder of one experiment.
        store: what ``create_store`` returned.
        strict: raise instead of a warning.

    Raises:
        ValueError: ``strict``, and the store cannot be reached or refuses something; what was pushed before stays.
    """
    results = Path(results)
    summary = {"enabled": store["enabled"], "cells": 0, "pushed": 0, "complete": not store["enabled"]}
    if not store["enabled"]:
        return summary

    def push() -> bool:
        target = _open(store)
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

    if strict:
        _settle_environment(LONG_PATIENCE)
        try:
            summary["complete"] = push()
        except Exception as error:
            raise ValueError(_reason(error)) from error
    else:
        summary["complete"] = bool(_forgiving(push, patience=LONG_PATIENCE))
    return summary


def sync_command(path: Path | None, *, results: Path) -> tuple[list[str], list[str]]:
    """Synchronise the experiments that a path names; return what was done and what failed, a line per experiment.

    Args:
        path: a configuration, the results folder of one experiment or of several; None stands for ``results``.
        results: folder of all experiments' results.

    Raises:
        ValueError: there is no tracked experiment.
    """
    done, failed = [], []
    for folder in _tracked(path, results=results):
        store = read_store(folder / "tracking" / "store.json")
        where = without_secrets(tracking_uri(store))
        try:
            summary = sync_experiment(folder, store=store, strict=True)
        except ValueError as error:
            failed.append(f"{folder} at {where} ({error})")
            continue
        if (marker := folder / "tracking" / "synchronised.json").is_file():
            write_json(marker, summary)
        told = f"{summary['cells']} trainings, {summary['pushed']} of its runs pushed now, all are in MLflow at {where}"
        done.append(f"{folder}: {told if store['enabled'] else 'tracking is off (tracking.enabled)'}")
    return done, failed


def _tracked(path: Path | None, *, results: Path) -> list[Path]:
    """List the results folders of the tracked experiments that a path names."""
    folder = path or results
    if folder.suffix in (".yaml", ".yml"):
        folder = results / load_experiment(folder).name
    folders = [store.parents[1] for store in sorted(folder.glob("*/tracking/store.json"))]
    if (folder / "tracking" / "store.json").is_file():
        folders = [folder]
    if not folders:
        raise ValueError(
            f"{folder} holds no tracked experiment (tracking/store.json, made by the first run of the workflow); "
            "name a configuration, or the folder that holds its results"
        )
    return folders


def _forgiving(action: Callable[[], Any], *, patience: int = PATIENCE, quiet: bool = False) -> Any:
    """Run an action on the store; return None with one warning where it fails, whatever the reason."""
    _settle_environment(patience)
    try:
        return action()
    except Exception as error:  # a viewer must never end a training, whatever it raises
        if not quiet:
            log.warning(
                "MLflow was not updated (%s). Results are complete without it; to show them: jointdiff track sync",
                _reason(error),
            )
        return None


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return without_secrets(lines[0])[:300]


def _settle_environment(patience: int) -> None:
    # Short patience: the defaults retry an unreachable server for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(patience))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # a lock file names one registry's addresses
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = ",".join(filter(None, [known, "127.0.0.1,localhost"]))  # no proxy reaches this machine
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)


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
    if holds_password(uri):  # which everyone on this machine reads in a list of processes
        os.environ["MLFLOW_BACKEND_STORE_URI"] = uri
    address = [] if holds_password(uri) else ["--backend-store-uri", uri]
    if file := sqlite_file(uri):
        address += ["--artifacts-destination", artifacts_beside(file).as_uri()]
    # One worker is enough for one reader; four, the default, each import for seconds.
    return ["mlflow", "ui", *address, "--host", host, "--port", str(port), "--workers", "1"]


def page_links(folder: Path | str, *, host: str = "127.0.0.1", port: int = 5000) -> dict[str, str]:
    """Return addresses of the pages that show each experiment of a results folder's store, by what they show.

    Raises:
        ValueError: the server that MLFLOW_TRACKING_URI names does not answer.
    """
    _settle_environment(PATIENCE)
    uri = tracking_uri({"uri": default_uri(folder)})
    # Without a user, for whom the browser asks; the key of a shared view in what follows is no secret.
    server = without_secrets(uri).replace("***@", "") if uri.startswith("http") else f"http://{host}:{port}"
    try:
        experiments = list_experiments(uri)
    except Exception as error:  # MLflow's, SQLAlchemy's or a driver's
        where = without_secrets(uri)
        raise ValueError(f"MLFLOW_TRACKING_URI: {where} does not answer ({_reason(error)[:200]})") from error
    return {
        f"{experiment.name}, {page}": address
        for experiment in experiments
        for page, address in links(server, experiment.experiment_id, experiment.tags).items()
    }
