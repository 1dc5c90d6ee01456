"""Made-up trainings and real servers for the tests of tracking."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from jointdiff.config import RunSpec, Training
from tests.conftest import missing


def spec(seed: int = 0, *, experiment: str = "made") -> RunSpec:
    """Return what a training was told."""
    return RunSpec(
        experiment=experiment, dataset="phantom", size=16, labels="50", variant="joint", method="joint", seed=seed,
        settings={}, training=Training(steps=40),
    )  # fmt: skip


def write_curve(path: Path, *, until: int) -> None:
    """Write the metrics.jsonl of a training that has come so many steps far."""
    lines = [
        {"step": step, "images": 8 * step, "split": split, "loss": 1 / (step + 1)}
        for step in range(0, until, 10)
        for split in ("train", "validation")
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_cell(results: Path, seed: int, *, steps: int = 40) -> Path:
    """Write a finished cell of an experiment and return its folder."""
    run = spec(seed, experiment=results.name)
    cell = results / "phantom" / "labels-50" / "joint" / f"seed-{seed}"
    (cell / "model").mkdir(parents=True)
    (cell / "model" / "config.json").write_text("{}")
    (cell / "model" / "README.md").write_text("---\ntags: [joint]\n---\n\n# A card\n")
    (cell / "previews").mkdir()
    for path in ("generated.png", "previews/0000020.png", "previews/0000040.png"):
        Image.new("L", (8, 6)).save(cell / path)
    write_curve(cell / "metrics.jsonl", until=steps)
    record = {
        "spec": run.model_dump(mode="json"), "settings": {"width": 16}, "run_id": run.digest,
        "config_digest": run.digest, "code_version": "abc", "data_digest": "f" * 64, "roles": {"test": 3},
        "environment": {"torch": "2.15.0", "commit": "0123456789ab (changed)"},
        "cost": {"train_seconds": 2.5, "steps": 40, "device": "CPU", "best_validation": 0.8 + 0.1 * seed},
    }  # fmt: skip
    (cell / "run.json").write_text(json.dumps(record))
    return cell


def free_port() -> int:
    """Return a port of loopback that nobody listens to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def wait_until(true: Callable[[], bool], *, process: subprocess.Popen[Any], seconds: float = 120.0) -> None:
    """Wait for a server to be of use; fail where its process ends or the time is over."""
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, f"{process.args} ended"
        assert time.monotonic() < deadline, f"{process.args} is of no use after {seconds:.0f} s"
        time.sleep(0.1)


class MlflowServer:
    """``mlflow server`` on loopback, which can be killed and started again at the same address."""

    def __init__(self, folder: Path, *, database: str, workers: int = 1, **environment: str) -> None:
        self.folder, self.database, self.workers, self.port = folder, database, workers, free_port()
        self.address, self.artifacts = f"http://127.0.0.1:{self.port}", folder / "artifacts"
        self.process: subprocess.Popen[Any] | None = None
        self.environment = {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # else eight more processes, which judge chat bots
            **environment,
        }

    def start(self) -> None:
        """Start it unless it runs, and wait until it answers."""
        if self.process:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", str(self.workers), "--artifacts-destination", str(self.artifacts)]
        command += ["--backend-store-uri", self.database]
        environment = os.environ | self.environment
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self._answers, process=self.process)

    def _answers(self) -> bool:
        try:
            return bool(urllib.request.urlopen(f"{self.address}/health", timeout=5).status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """Kill it and its workers at once, as a power cut does."""
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
            deadline = time.monotonic() + 30
            while self._listens():  # its workers are nobody's children now, so that nobody can wait for them
                assert time.monotonic() < deadline, f"a worker of {self.address} outlived its server"
                time.sleep(0.05)

    def _listens(self) -> bool:
        try:
            socket.create_server(("127.0.0.1", self.port)).close()
        except OSError:
            return True
        return False

    @contextmanager
    def hanging(self) -> Iterator[list[socket.socket]]:
        """Stand in for it with a server that takes every request and never answers; yield who waits."""
        self.kill()
        taken: list[socket.socket] = []
        with socket.create_server(("127.0.0.1", self.port)) as listening:

            def take() -> None:
                while True:
                    try:
                        taken.append(listening.accept()[0])
                    except OSError:  # closed
                        return

            thread = threading.Thread(target=take, daemon=True)
            thread.start()
            try:
                yield taken
            finally:
                listening.shutdown(socket.SHUT_RDWR)
                thread.join()
                for connection in taken:
                    connection.close()


def postgres_programs() -> Path:
    """Return the folder of PostgreSQL's server programs, which Debian keeps out of PATH; skip the test without."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not folders:
        missing("PostgreSQL's initdb is not installed (Debian: postgresql)")
    return folders[-1]


@contextmanager
def postgres(password: str) -> Iterator[tuple[str, Path]]:
    """Run PostgreSQL on loopback with a user and a database ``mlflow``; yield its address and the password's file."""
    import psycopg2

    programs, port = postgres_programs(), free_port()
    # It refuses to run as root, and must reach its folder, which pytest's own ones forbid to other users.
    who: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="jointdiff-postgres-"))
    try:
        (folder / "password").write_text(password)
        if who:
            for path in (folder, folder / "password"):
                shutil.chown(path, "postgres", "postgres")
        run: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **who}
        made = [programs / "initdb", "-D", "data", "-U", "postgres", "--auth=scram-sha-256", "--pwfile=password"]
        subprocess.run(made, check=True, **run)
        options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        process = subprocess.Popen([programs / "postgres", "-D", "data", *options], **run)

        def connect() -> Any:
            return psycopg2.connect(host="127.0.0.1", port=port, user="postgres", password=password, dbname="postgres")

        def answers() -> bool:
            try:
                connect().close()
            except psycopg2.OperationalError:
                return False
            return True

        try:
            wait_until(answers, process=process)
            connection = connect()
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("CREATE ROLE mlflow LOGIN PASSWORD %s", (password,))
                cursor.execute("CREATE DATABASE mlflow OWNER mlflow")
            connection.close()
            quoted = password.replace("\\", "\\\\").replace(":", "\\:")
            (folder / "pgpass").write_text(f"127.0.0.1:{port}:mlflow:mlflow:{quoted}\n")
            (folder / "pgpass").chmod(0o600)
            yield f"postgresql://mlflow@127.0.0.1:{port}/mlflow", folder / "pgpass"
        finally:
            process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            process.wait()
    finally:
        shutil.rmtree(folder)
