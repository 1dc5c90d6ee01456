"""MLflow shows what the files say: once, whole, however often and from however many processes it is told."""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from jointdiff import cli, mlflow_store, tracking
from jointdiff.addresses import without_secrets
from jointdiff.config import Tracking, parse_experiment
from jointdiff.doctor import _tracking
from jointdiff.files import read_json, sha256, write_json
from jointdiff.mlflow_store import LINES
from jointdiff.report.best import choose_best
from jointdiff.tracking import (
    Tracker,
    browse_command,
    create_store,
    page_links,
    read_store,
    sync_experiment,
    write_store,
)
from tests.unit.tracked import spec, write_cell, write_curve


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results" / "made"
    for seed in (0, 1):
        write_cell(folder, seed)
    (folder / "tables").mkdir()
    (folder / "tables" / "cost.csv").write_text("a,b\n")
    return folder


@pytest.fixture(scope="session")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store whose migrations are done: they take seconds, so tests copy it."""
    folder = tmp_path_factory.mktemp("store")
    create_store("other", beside=folder)
    return folder / "mlflow.db"


@pytest.fixture
def ready(results: Path, initialised: Path) -> Path:
    """Results with an initialised store beside them."""
    shutil.copy(initialised, results.parent / "mlflow.db")
    return results


def runs_of(store: dict[str, Any]) -> tuple[Any, list[Any]]:
    import mlflow

    client = mlflow.MlflowClient(store["uri"])
    return client, client.search_runs([client.get_experiment_by_name(store["experiment"]).experiment_id])


def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the address of a server that is not there."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_everything_is_shown_once(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EXPERIMENT_NAME", "RUN_ID"):  # of another session
        monkeypatch.setenv(f"MLFLOW_{name}", "0123456789abcdef")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{ready.parent / 'another.db'}")
    store = create_store("made", beside=ready.parent)
    assert sync_experiment(ready, store=store) == {"enabled": True, "cells": 2, "pushed": 2, "complete": True}
    assert sync_experiment(ready, store=store)["pushed"] == 0

    client, runs = runs_of(store)
    (summary,) = [run for run in runs if run.data.tags["kind"] == "summary"]
    children = {run.data.tags["seed"]: run for run in runs if run.data.tags["kind"] == "training"}
    assert len(runs) == 3
    assert set(children) == {"0", "1"}
    assert [file.path for file in client.list_artifacts(summary.info.run_id, "tables")] == ["tables/cost.csv"]
    child = children["1"]
    assert child.info.status == "FINISHED"
    assert child.info.run_name == "joint · 50 labels · seed 1"
    assert child.info.end_time - child.info.start_time == 2500, "as long as the training, not as the push"
    assert child.data.tags["mlflow.note.content"] == "# A card"
    assert child.data.tags.items() >= {
        "dataset": "phantom", "labels": "50", "method": "joint", "code_version": "abc", "config_digest": spec(1).digest,
        "environment.torch": "2.15.0", "environment.commit": "0123456789ab (changed)",
    }.items()  # fmt: skip
    same_torch = client.search_runs([child.info.experiment_id], "tags.`environment.torch` = '2.15.0'")
    assert {run.info.run_id for run in same_torch} == {run.info.run_id for run in children.values()}
    assert child.data.params.items() >= {"training.steps": "40", "settings.width": "16", "seed": "1"}.items()
    for split in ("train", "validation"):
        curve = client.get_metric_history(child.info.run_id, f"{split}/loss")
        assert [(point.step, point.value) for point in curve] == [(s, 1 / (s + 1)) for s in range(0, 40, 10)]
    assert child.data.metrics["cost/train_seconds"] == 2.5
    assert {data.dataset.name for data in child.inputs.dataset_inputs} == {"phantom-16", "phantom-16 split"}
    shown = {file.path for file in client.list_artifacts(child.info.run_id)}
    assert shown >= {"run.json", "metrics.jsonl", "generated.png"}
    images = [Path(file.path).name for file in client.list_artifacts(child.info.run_id, "images")]
    assert sorted({name.split("+timestamp+")[0] for name in images if name.endswith(".png")}) == [
        "images~generated+step+0",
        "images~training+step+20",
        "images~training+step+40",
    ]
    models = client.search_logged_models([child.info.experiment_id])
    assert {model.source_run_id for model in models} == {run.info.run_id for run in children.values()}
    assert not (ready.parent / "another.db").exists()
    stored = [path for path in (ready.parent / "mlartifacts").rglob("*") if path.is_file()]
    assert stored
    assert not [path for path in stored if path.suffix in {".pkl", ".lock"}]


@pytest.mark.parametrize(
    ("call", "number"),
    [("create_experiment", 1), ("create_run", 1), ("log_batch", 1), ("log_batch", 2), ("log_batch", 3),
     ("log_batch", 5), ("log_inputs", 1), ("log_artifact", 1), ("log_image", 1), ("log_image", 3),
     ("log_model_artifacts", 1), ("set_terminated", 1)],
)  # fmt: skip
def test_an_answer_that_gets_lost_loses_nothing_and_doubles_nothing(
    call: str, number: int, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    shutil.rmtree(ready / "phantom" / "labels-50" / "joint" / "seed-1")
    store = {"enabled": True, "experiment": "made", "uri": tracking.default_uri(ready.parent)}
    write_curve(ready / "phantom" / "labels-50" / "joint" / "seed-0" / "metrics.jsonl", until=3000)  # two requests
    real, answers = getattr(mlflow.MlflowClient, call), []

    def lost(*args: Any, **kwargs: Any) -> Any:
        answers.append(real(*args, **kwargs))
        if len(answers) == number:
            raise ConnectionError("the answer got lost")
        return answers[-1]

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, call, lost)
        with pytest.raises(ValueError, match="the answer got lost"):
            sync_experiment(ready, store=store, strict=True)
    assert len(answers) == number
    assert sync_experiment(ready, store=store, strict=True)["pushed"] == 1
    client, runs = runs_of(store)
    assert sorted(run.data.tags["kind"] for run in runs) == ["summary", "training"]
    (run,) = [run.info.run_id for run in runs if run.data.tags["kind"] == "training"]
    for name in ("train/loss", "validation/loss", "train/images"):
        assert [point.step for point in client.get_metric_history(run, name)] == list(range(0, 3000, 10))
    assert len(client.get_metric_history(run, "cost/train_seconds")) == 1
    pictures = [file.path for file in client.list_artifacts(run, "images") if file.path.endswith(".png")]
    assert len(pictures) == 3
    (model,) = client.search_logged_models([client.get_experiment_by_name("made").experiment_id])
    assert model.status == "READY"


def test_a_run_that_was_made_twice_becomes_one(ready: Path) -> None:
    """A request whose answer is late is sent again by MLflow's client itself."""
    import mlflow

    store = create_store("made", beside=ready.parent)
    client, (summary,) = runs_of(store)
    again = client.create_run(summary.info.experiment_id, tags={"jointdiff.run": summary.data.tags["jointdiff.run"]})
    client.log_metric(again.info.run_id, "known", 1.0)
    assert create_store("made", beside=ready.parent) == store
    _, (kept,) = runs_of(store)
    assert kept.info.run_id == again.info.run_id, "the fuller one"
    assert mlflow.MlflowClient(store["uri"]).get_run(summary.info.run_id).info.lifecycle_stage == "deleted"


@pytest.mark.parametrize("lines", [499, 500, 501, 1000])
def test_no_tag_vouches_for_values_that_are_still_to_be_sent(
    lines: int, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request takes 1,000 values and tags together, so two values a line meet its limit at 500 lines."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    real, sent = SqlAlchemyStore.log_batch, []

    def told(self: Any, run_id: str, metrics: Any, params: Any, tags: Any) -> None:
        sent.append((len(metrics), {tag.key for tag in tags}))
        real(self, run_id, metrics, params, tags)

    store = create_store("made", beside=ready.parent)
    shutil.rmtree(ready / "phantom" / "labels-50" / "joint" / "seed-1")
    write_curve(ready / "phantom" / "labels-50" / "joint" / "seed-0" / "metrics.jsonl", until=5 * lines)
    monkeypatch.setattr(SqlAlchemyStore, "log_batch", told)
    assert sync_experiment(ready, store=store, strict=True)["complete"]
    (last,) = [index for index, (_, tags) in enumerate(sent) if LINES in tags]
    written = len((ready / "phantom" / "labels-50" / "joint" / "seed-0" / "metrics.jsonl").read_text().splitlines())
    assert sum(count for count, _ in sent[: last + 1]) == 2 * written
    assert all(count + len(tags) <= 1000 for count, tags in sent)


# The command, and what may be told


@pytest.fixture
def tracked(ready: Path) -> Path:
    """Results as the workflow leaves them, of which the store holds nothing yet."""
    write_json(ready / "tracking" / "store.json", create_store("made", beside=ready.parent))
    write_json(ready / "tracking" / "synchronised.json", {"complete": False})
    return ready


def test_track_sync_finds_results_by_folder_or_configuration(
    tracked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "made.yaml"
    config.write_text("name: made\nseeds: [0]\ndatasets: {phantom: {size: 16, labels: [4]}}\nmethods: {random: {}}\n")
    results = str(tracked.parent)
    assert cli.main(["track", "sync", "--results", results]) == 0
    assert f"{tracked}: 2 trainings, 2 of its runs pushed now" in capsys.readouterr().out
    assert read_json(tracked / "tracking" / "synchronised.json")["complete"]
    for named in ([str(tracked)], [results], [str(config), "--results", results]):
        assert cli.main(["track", "sync", *named]) == 0
        assert f"{tracked}: 2 trainings, 0 of its runs pushed now" in capsys.readouterr().out
    _, runs = runs_of(read_json(tracked / "tracking" / "store.json"))
    assert len(runs) == 3


def test_track_sync_says_once_what_is_wrong(
    tracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["track", "sync", str(tmp_path / "nowhere")]) == 1
    assert "nowhere holds no tracked experiment" in capsys.readouterr().err
    there = nobody_answers(monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", there.replace("//", "//me:a-secret@"))
    assert cli.main(["track", "sync", str(tracked)]) == 1
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert f"repeat this command once it can be: {tracked} at {there} (" in line
    assert "a-secret" not in said.err + said.out
    assert not read_json(tracked / "tracking" / "synchronised.json")["complete"]


def test_a_password_reaches_the_server_and_no_message(
    ready: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that refuses everyone, and repeats what it was told, as a careless proxy does."""
    heard = []

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers["Authorization"])
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b"no entry for http://me:a%2Fsecret@here or password=a/secret")

        def log_message(self, *_: Any) -> None:
            pass

    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # so that what is set is undone
    for name in ("http_proxy", "HTTP_PROXY"):  # where nobody listens
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:a%2Fsecret@127.0.0.1:{server.server_port}")
        assert not sync_experiment(ready, store={"enabled": True, "experiment": "made", "uri": ""})["complete"]
        server.shutdown()
    assert heard[0] == "Basic " + base64.b64encode(b"me:a/secret").decode()
    assert "MLflow was not updated" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:pw@there:5432/mlflow", "postgresql://***@there:5432/mlflow"),
        ("postgresql+psycopg2://me:p/w@there/mlflow", "postgresql+psycopg2://***@there/mlflow"),
        ("postgresql://there/mlflow?user=me&password=pw&sslmode=require",
         "postgresql://there/mlflow?user=me&password=***&sslmode=require"),
        ("Invalid 'https://me@there/x' and http://a:pw@b", "Invalid 'https://***@there/x' and http://***@b"),
        ("http://127.0.0.1:5000/#/experiments/1", "http://127.0.0.1:5000/#/experiments/1"),
        ("sqlite:////home/me/results/mlflow.db", "sqlite:////home/me/results/mlflow.db"),
        ("wrong word hush, quoted hush", "wrong word ***, quoted ***"),
    ],
)  # fmt: skip
def test_addresses_are_shown_without_secrets(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "hush")
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    ("uri", "refused"),
    [
        ("postgresql://me:pw@there/mlflow", True),
        ("postgresql://there/mlflow?password=pw", True),
        ("https://me:pw@there", True),
        ("postgresql://me@there:5432/mlflow", False),
        ("http://127.0.0.1:5000", False),
        (None, False),
    ],
)
def test_a_configuration_holds_no_password(uri: str | None, refused: bool) -> None:
    if not refused:
        assert Tracking(uri=uri).uri == uri
        return
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI") as raised:
        parse_experiment(
            {
                "name": "made", "seeds": [0], "datasets": {"phantom": {"size": 16, "labels": [4]}},
                "methods": {"random": {}}, "tracking": {"uri": uri},
            }
        )  # fmt: skip
    assert "pw" not in str(raised.value)


def test_a_password_is_no_argument_of_the_browser_s_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:pw@there/mlflow")
    command = browse_command(tmp_path)
    assert command is not None and "pw" not in " ".join(command) and "127.0.0.1" in command
    assert os.environ["MLFLOW_BACKEND_STORE_URI"] == "postgresql://me:pw@there/mlflow"


def test_the_best_model_is_registered_once_and_again_when_another_is_better(ready: Path) -> None:
    store = create_store("made", beside=ready.parent)
    for _ in range(2):
        sync_experiment(ready, store=store)
    client, runs = runs_of(store)
    (version,) = client.search_model_versions("name = 'made-phantom'")
    (run,) = [run for run in runs if run.info.run_id == version.run_id]
    assert run.data.tags["seed"] == "1"
    assert version.tags.items() >= {"method": "joint", "labels": "50", "validation/auroc": "0.9000"}.items()
    assert version.description == "# A card"
    assert client.get_model_version_by_alias("made-phantom", "best").version == version.version
    assert "| joint | 0.850 |" in client.get_registered_model("made-phantom").description

    write_cell(ready, 2)
    sync_experiment(ready, store=store)
    assert len(client.search_model_versions("name = 'made-phantom'")) == 2
    assert client.get_model_version_by_alias("made-phantom", "best").tags["seed"] == "2"


def test_the_best_model_is_chosen_by_validation_at_the_largest_budget(tmp_path: Path) -> None:
    scores = {
        ("50", "joint"): [0.99, 0.99],
        ("200", "joint"): [0.7, 0.95],
        ("200", "fixmatch"): [0.8, 0.9],
        ("200", "random"): [None, None],
        ("all", "supervised"): [1.0, 1.0],
    }
    for (labels, variant), values in scores.items():
        for seed, value in enumerate(values):
            cell = tmp_path / f"{labels} {variant} {seed}"
            cell.mkdir()
            run = spec(seed).model_copy(update={"labels": labels, "variant": variant})
            record = {"spec": run.model_dump(mode="json"), "code_version": "abc", "cost": {"best_validation": value}}
            (cell / "run.json").write_text(json.dumps(record))
    (best,) = choose_best(tmp_path.iterdir()).values()
    assert (best.run.labels, best.run.variant, best.run.seed, best.score) == ("200", "fixmatch", 1, 0.9)
    assert best.why.splitlines()[-2:] == ["| fixmatch | 0.850 |", "| joint | 0.825 |"]


def test_pages_are_linked_by_experiment_and_data_set(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync_experiment(ready, store=create_store("made", beside=ready.parent))
    found = page_links(ready.parent, port=5001)
    assert set(found) == {"made, phantom", "made, phantom, pictures"}
    assert found["made, phantom"].startswith("http://127.0.0.1:5001/#/experiments/")
    assert found["made, phantom"].endswith("viewStateShareKey=phantom")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nobody_answers(monkeypatch))
    with pytest.raises(ValueError, match=r"MLFLOW_TRACKING_URI: http://127\.0\.0\.1:\d+ does not answer"):
        page_links(ready.parent)


def test_a_growing_curve_is_pushed_line_by_line(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "LIVE_AFTER", 0.0)
    monkeypatch.setattr(tracking, "LIVE_EVERY", 0.0)
    monkeypatch.setattr(tracking, "watch_system", lambda *_: object())
    store = create_store("made", beside=ready.parent)
    cell = ready / "phantom" / "labels-50" / "joint" / "seed-0"
    tracker = Tracker(store, spec(0), code_version="abc")
    for until in (20, 20, 40):
        write_curve(cell / "metrics.jsonl", until=until)
        tracker(cell / "metrics.jsonl")
        assert tracker.thread is not None
        tracker.thread.join()
    sync_experiment(ready, store=store)
    client, runs = runs_of(store)
    (child,) = [run for run in runs if run.data.tags.get("seed") == "0"]
    assert len(client.get_metric_history(child.info.run_id, "train/loss")) == 4


def test_a_training_that_ends_during_a_push_is_no_failure(
    ready: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "LIVE_AFTER", 0.0)
    tracker = Tracker(create_store("made", beside=ready.parent), spec(0), code_version="abc")
    tracker(ready / "removed meanwhile" / "metrics.jsonl")
    assert tracker.thread is not None
    tracker.thread.join()
    assert not tracker.failed and not caplog.records


def test_a_short_training_pays_nothing(results: Path) -> None:
    script = (
        "import sys, json; from pathlib import Path; from jointdiff.config import RunSpec; "
        "from jointdiff.tracking import Tracker; run = RunSpec.model_validate(json.loads(sys.argv[1])); "
        "Tracker({'enabled': True, 'uri': 'sqlite:///x', 'experiment': 'e'}, run, code_version='')(Path('m')); "
        "assert 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, spec().model_dump_json()], check=True)


def test_an_unreachable_server_is_one_warning_and_a_later_sync(
    ready: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = nobody_answers(monkeypatch)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="jointdiff.tracking"):
        store = create_store("made", beside=ready.parent, uri=uri)
    assert len(caplog.records) == 1
    assert "jointdiff track sync" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="jointdiff.tracking"):
        summary = sync_experiment(ready, store=store)
    assert not summary["complete"]
    assert len(caplog.records) == 1
    assert time.monotonic() - started < 60

    store = create_store("made", beside=ready.parent)  # the address is mended
    assert sync_experiment(ready, store=store) == {"enabled": True, "cells": 2, "pushed": 2, "complete": True}


def test_a_training_survives_a_store_that_fails(
    results: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "LIVE_AFTER", 0.0)
    store = {"enabled": True, "experiment": "made", "uri": nobody_answers(monkeypatch)}
    tracker = Tracker(store, spec(), code_version="abc")
    for _ in range(3):
        tracker(results / "phantom" / "labels-50" / "joint" / "seed-0" / "metrics.jsonl")
        assert tracker.thread is not None
        tracker.thread.join()
    assert len([record for record in caplog.records if record.name == "jointdiff.tracking"]) == 1


@pytest.mark.workflow
def test_four_processes_write_to_one_sqlite_store(ready: Path) -> None:
    store = create_store("made", beside=ready.parent)
    script = """
import json, sys
from pathlib import Path
from jointdiff import cli, tracking
from jointdiff.addresses import without_secrets
from jointdiff.config import Tracking, parse_experiment
from jointdiff.files import read_json, write_json
from jointdiff.config import RunSpec
tracking.LIVE_AFTER, tracking.watch_system = 0.0, lambda *_: object()
tracker = tracking.Tracker(json.loads(sys.argv[1]), RunSpec.model_validate_json(sys.argv[2]), code_version="abc")
tracker(Path(sys.argv[3]))
tracker.thread.join()
assert not tracker.failed
"""
    curve = str(ready / "phantom" / "labels-50" / "joint" / "seed-0" / "metrics.jsonl")
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, json.dumps(store), spec(seed).model_dump_json(), curve],
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(4)
    ]
    errors = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4, errors
    client, runs = runs_of(store)
    children = [run for run in runs if "seed" in run.data.tags]
    assert sorted(run.data.tags["seed"] for run in children) == ["0", "1", "2", "3"]
    assert len(runs) == 5
    for run in children:
        assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 4


def test_nothing_is_made_where_tracking_is_off(results: Path) -> None:
    store = create_store("made", beside=results.parent, enabled=False)
    assert sync_experiment(results, store=store)["complete"]
    assert not (results.parent / "mlflow.db").exists()


def test_the_environment_names_another_store(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking.tracking_uri({"uri": "sqlite:///a"}) == "sqlite:///a"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    assert tracking.tracking_uri({"uri": "sqlite:///a"}) == "http://there"


# A project that is copied or moved


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in folder.rglob("*") if path.is_file()}


def name_by_folder(results: Path) -> None:
    """Let a store name its artifacts by the folder in which it was made, as earlier versions did."""
    place = (results / "mlartifacts").as_uri()
    with closing(sqlite3.connect(results / "mlflow.db")) as database, database:
        for table, column in mlflow_store.LOCATIONS:
            database.execute(
                f"UPDATE {table} SET {column} = rtrim(replace({column}, 'mlflow-artifacts:', ?), '/')", [place]
            )
        database.execute("UPDATE experiments SET artifact_location = '/somewhere/mlruns/0' WHERE experiment_id = 0")
    store = {"enabled": True, "experiment": "made", "uri": tracking.default_uri(results), "artifacts": place}
    write_json(results / "made" / "tracking" / "store.json", store)


@pytest.mark.parametrize("made", ["now", "earlier"])
def test_a_copied_project_writes_to_its_own_store_alone(
    made: str, ready: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    import mlflow

    former, results = ready.parent, tmp_path / "else where" / "100%"
    write_store(ready / "tracking" / "store.json", create_store("made", beside=former))
    assert cli.main(["track", "sync", "--results", str(former)]) == 0
    if made == "earlier":
        name_by_folder(former)
    shutil.copytree(former, results)
    before = digests(former)
    write_cell(results / "made", 2)
    found = _tracking(results)
    assert (found.state == "absent") == (made == "earlier") == (str(former) in found.found)
    caplog.clear()
    for _ in range(2):
        assert cli.main(["track", "sync", "--results", str(results)]) == 0
    assert "3 trainings, 0 of its runs pushed now" in capsys.readouterr().out
    assert len([record for record in caplog.records if str(former) in record.message]) == int(made == "earlier")
    assert digests(former) == before
    shutil.rmtree(former)

    client, runs = runs_of(read_store(results / "made" / "tracking" / "store.json"))
    assert len(runs) == 4
    for run in runs:
        if run.data.tags["kind"] == "training":
            assert (results / "mlartifacts" / run.info.run_id / "artifacts" / "run.json").is_file()
            assert Path(client.download_artifacts(run.info.run_id, "run.json")).is_file()
    (best,) = client.search_model_versions("name = 'made-phantom' and tags.seed = '2'")
    address = f"models:/{best.name}/{best.version}"
    model = mlflow.artifacts.download_artifacts(address, tracking_uri=tracking.default_uri(results))
    assert (Path(model) / "MLmodel").is_file()
    command = browse_command(results)
    assert command is not None and (results / "mlartifacts").as_uri() in command
    kept = {name for name in digests(results) if str(former).encode() in (results / name).read_bytes()}
    # Store and records are rid of the former folder; what an earlier store.json said is passed over.
    assert kept == ({"made/tracking/store.json"} if made == "earlier" else set())
