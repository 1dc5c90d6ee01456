"""The command line: what a machine offers, and a trained model at hand."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jointdiff import cli, doctor, jobs, registry
from jointdiff.config import RunSpec, Training
from jointdiff.data.source import Augmentations, DataInfo, File, LabelSpec, Source
from jointdiff.declared import SCHEMA
from jointdiff.models import save_model
from jointdiff.registry import load_method, sources

DATA = DataInfo(
    name="phantom", title="Phantoms", labels=LabelSpec("multi_label", ("nodule", "effusion")), channels=1, size=16,
    augmentations=Augmentations(), samples=1, digest="", has_regions=True,
)  # fmt: skip


def model(folder: Path, method: str, **settings: object) -> Path:
    cls = load_method(method)
    run = RunSpec(
        experiment="e", dataset="phantom", size=16, labels="10", variant=method, method=method, seed=0,
        settings=settings, training=Training(),
    )  # fmt: skip
    save_model(cls(DATA, cls.Settings.model_validate(settings)), folder / method, run=run)
    return folder / method


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20), dtype=np.uint8)).save(path)
    return path


def test_the_doctor_names_what_is_there_and_what_its_absence_affects(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("JOINTDIFF_MIRROR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@there/mlflow")
    assert cli.main(["doctor", "--results", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for what in (
        "Python",
        "torch",
        "device",
        "TeX",
        "other scripts",
        "Slurm",
        "browser",
        "mirror",
        "tracking store",
        "free space",
    ):
        assert what in said
    assert "compile_paper" in said
    assert "is no folder" in said
    assert "https://***@there/mlflow" in said
    assert "secret" not in said


def test_the_doctor_looks_at_the_project_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(folder: Path) -> doctor.Finding:
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        return {finding.what: finding for finding in doctor.examine(tmp_path)}["project folder"]

    odd = tmp_path / "mein Projekt {1} [α] é日本 #%'&"
    assert found(odd).state == "good" and odd.name in found(odd).found and not list(odd.iterdir())
    assert found(tmp_path / "a\nb").state == "bad"
    (odd / "table.csv").touch()
    os.utime(odd / "table.csv", (4e9, 4e9))
    assert "'table.csv' is dated ahead of the clock" in found(odd).found
    monkeypatch.setattr(doctor.time, "time", lambda: 4e9 + 100)
    assert "behind this machine's" in found(odd).found


def test_a_check_that_breaks_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> doctor.Finding:
        raise RuntimeError("driver gone")

    monkeypatch.setattr(doctor, "_slurm", broken)
    findings = {finding.what: finding for finding in doctor.examine()}
    assert "driver gone" in findings["Slurm"].found
    assert findings["Python"].state == "good"


@pytest.mark.parametrize(
    ("what", "settings", "state", "says"),
    [
        ("launcher", {"WORLD_SIZE": "4", "RANK": "0"}, "absent", "WORLD_SIZE=4, RANK=0"),
        ("launcher", {"SLURM_STEP_NUM_TASKS": "8"}, "absent", "srun --ntasks 1"),
        ("launcher", {"SLURM_NTASKS": "8"}, "good", "the only one"),
        ("environment", {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}, "absent", "changes no figure"),
        ("environment", {"MLFLOW_RUN_ID": "f00", "SNAKEMAKE_PROFILE": "lab"}, "absent", "MLFLOW_RUN_ID is passed over"),
        ("environment", {"PYTHONPATH": "/elsewhere"}, "absent", "decides which code runs"),
        ("user", {"HOME": "/dev/null"}, "bad", 'export HOME="$PWD"'),
        ("user", {"HOME": "/dev/null", "XDG_CACHE_HOME": "{tmp}"}, "good", "home /dev/null"),
        ("temporary", {"TMPDIR": "/proc"}, "absent", "since TMPDIR=/proc cannot be written to"),
        ("temporary", {"TMPDIR": "{tmp}"}, "good", "GiB free"),
        ("proxies", {"HTTPS_PROXY": "http://me:pw@there:3128"}, "good", "https=http://***@there:3128"),
    ],
)
def test_the_doctor_looks_at_what_others_left_around(
    what: str, settings: dict[str, str], state: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "SLURM_", "MPLBACKEND", "PYTHONPATH", *jobs.GROUP)):
            monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(name, value.replace("{tmp}", str(tmp_path)))
    monkeypatch.setattr(tempfile, "tempdir", None)  # where Python remembers what it found
    finding = getattr(doctor, f"_{what}")()
    assert finding.state == state
    assert says in f"{finding.found} {finding.affects}"


def test_the_doctor_names_an_encoding_that_lacks_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert "PYTHONUTF8=1" in doctor._encoding().affects


def test_commands_work_whatever_others_left_around(tmp_path: Path, image: Path) -> None:
    notebook = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "COLUMNS": "1"}
    launcher = {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    container = {"TMPDIR": "/proc", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Odd/Zone"}
    folder, odd = model(tmp_path, "supervised", depth=10, width=1), tmp_path / "Große Lunge 肺.png"
    image.rename(odd)
    command = [sys.executable, "-m", "jointdiff.cli", "explain", str(folder), str(odd), "--out", str(tmp_path / "out")]
    around = os.environ | notebook | launcher | container
    done = subprocess.run(command, env=around, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "Große Lunge 肺" in (tmp_path / "out" / "explanations.csv").read_text(encoding="utf-8")
    assert done.stderr.count("WORLD_SIZE=4, RANK=0") == 1

    known = [sys.executable, "-m", "jointdiff.cli", "data", "list"]
    listed = subprocess.run(known, env=os.environ | {"PYTHONOPTIMIZE": "2"}, capture_output=True, text=True, timeout=60)
    assert listed.returncode == 0 and "phantom" in listed.stdout, listed.stderr


def test_the_schema_is_written(tmp_path: Path) -> None:
    assert cli.main(["schema", "--out", str(tmp_path / "schema.json")]) == 0
    assert (tmp_path / "schema.json").read_text() == SCHEMA.read_text()


def test_images_are_predicted_into_a_table(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = model(tmp_path, "supervised", depth=10, width=1)
    assert cli.main(["predict", str(folder), str(image)]) == 0
    assert "1 image: " in (said := capsys.readouterr().out) and "wrote predictions.csv" in said
    header, line = Path("predictions.csv").read_text().splitlines()
    assert header == "image,probability:nodule,probability:effusion,prediction,uncertainty"
    assert line.startswith(f"{image},0.")
    assert cli.main(["predict", str(folder), str(image), "--out", "-"]) == 0
    assert capsys.readouterr().out == f"{header}\n{line}\n"


def test_what_cannot_be_read_is_said_and_the_rest_is_written(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = str(model(tmp_path, "random")), tmp_path / "p.csv"
    (tmp_path / "broken.png").write_bytes(b"no image")
    files = [str(tmp_path / "broken.png"), str(image), str(tmp_path / "gone.png")]
    assert cli.main(["predict", folder, *files, "--out", str(out)]) == 1
    assert len(out.read_text().splitlines()) == 2
    errors = capsys.readouterr().err
    assert (
        "broken.png does not decode" in errors and "gone.png cannot be read" in errors and "2 of the images" in errors
    )
    assert cli.main(["predict", folder, files[0], "--out", str(tmp_path / "none.csv")]) == 1
    assert not (tmp_path / "none.csv").exists()


def test_a_joint_model_draws_and_explains(tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(model(tmp_path, "joint", width=8, multipliers=(1, 1), blocks=1, attention_at=()))
    drawn, explained = tmp_path / "drawn", tmp_path / "explained"
    sample = ["sample", folder, "--images", "3", "--steps", "2", "--out", str(drawn)]
    assert cli.main([*sample, "--labels", "effusion"]) == 0
    assert {path.name for path in drawn.iterdir()} == {"generated.npz", "generated.png", "images", "samples.csv"}
    assert cli.main([*sample, "--labels", "effusion,"]) == 1
    explain = ["explain", folder, str(image), "--out", str(explained)]
    assert cli.main([*explain, "--finding", "effusion", "--arrays", "--steps", "2"]) == 0
    assert {path.name for path in explained.iterdir()} == {"image.png", "image.npz", "explanations.csv"}
    capsys.readouterr()
    for wrong, says in {
        ("--finding", "efusion"): "did you mean 'effusion'? It knows: nodule, effusion",
        ("--enforce",): "say which with --finding",
        ("--noise-level", "0"): "--noise-level: input should be greater than or equal to 1, found 0",
        ("--noise-level", "5", "--steps", "6"): "--steps: 6 steps do not fit below --noise-level 5",
    }.items():
        assert cli.main([*explain, *wrong]) == 1
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["check", "nowhere.yaml"], "there is no such configuration file"),
        (["predict", "nowhere", "image.png"], "is no model folder"),
        (["mlflow", "--results", "nowhere"], "does not exist yet"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 1
    assert says in capsys.readouterr().err


# Data sets


def test_data_sets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "list"]) == 0
    said = capsys.readouterr().out
    for name in sources():
        assert f"\n{name} " in f"\n{said}"
    assert "112,120 images, findings: 14" in said and "CheXpert needs registration" in said


def test_a_mirror_is_filled_for_a_configuration(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = b"images"
    source = Source(
        name="toy", title="Toy", labels=LabelSpec("multi_label", ("a",)), channels=1, licence="none", cite="none",
        files=(File("toy.bin", sha256=hashlib.sha256(content).hexdigest()),), access="ask the keeper",
    )  # fmt: skip
    monkeypatch.setattr(registry, "load_source", lambda name: types.SimpleNamespace(SOURCE=source))
    assert cli.main(["data", "mirror", str(tmp_path / "mirror"), "toy"]) == 1
    assert "toy: 0 of 1 files" in (said := capsys.readouterr().out) and "access: ask the keeper" in said
    (tmp_path / "given/toy").mkdir(parents=True)
    (tmp_path / "given/toy/toy.bin").write_bytes(content)
    monkeypatch.setenv("JOINTDIFF_MIRROR", str(tmp_path / "given"))
    assert cli.main(["data", "mirror", str(tmp_path / "mirror"), "toy"]) == 0
    assert (tmp_path / "mirror/toy/toy.bin").read_bytes() == content
    assert "toy/toy.bin" in (tmp_path / "mirror/SHA256SUMS").read_text()


def test_a_configuration_of_data_that_are_absent_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "{name: x, seeds: [0], methods: {random: {}}, datasets: {chexpert: {size: 32, labels: [10]}}}"
    )
    assert cli.main(["check", str(tmp_path / "x.yaml")]) == 1
    assert "(4) set datasets.chexpert.options.folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "init"])
def test_data_that_are_not_there_end_in_one_message(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["data", command, str(tmp_path / "gone")]) == 1
    captured = capsys.readouterr()
    assert "gone" in captured.out + captured.err and "Traceback" not in captured.err
