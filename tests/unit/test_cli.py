"""The command line: what a machine offers, and a trained model at hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jointdiff import cli, doctor
from jointdiff.config import SCHEMA, RunSpec, Training
from jointdiff.data.source import Augmentations, DataInfo, LabelSpec
from jointdiff.models import save_model
from jointdiff.registry import load_method

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
    for what in ("Python", "torch", "device", "TeX", "Slurm", "browser", "mirror", "tracking store", "free space"):
        assert what in said
    assert "compile_paper" in said
    assert "is no folder" in said
    assert "https://there/mlflow" in said
    assert "secret" not in said


def test_a_check_that_breaks_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> doctor.Finding:
        raise RuntimeError("driver gone")

    monkeypatch.setattr(doctor, "_slurm", broken)
    findings = {finding.what: finding for finding in doctor.examine()}
    assert "driver gone" in findings["Slurm"].found
    assert findings["Python"].state == "good"


def test_the_schema_is_written(tmp_path: Path) -> None:
    assert cli.main(["schema", "--out", str(tmp_path / "schema.json")]) == 0
    assert (tmp_path / "schema.json").read_text() == SCHEMA.read_text()


def test_a_model_predicts_an_image_file(tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model(tmp_path, "supervised", depth=10, width=1)
    assert cli.main(["predict", str(folder), str(image)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer.pop("image") == str(image)
    assert set(answer) == {"nodule", "effusion"}
    assert all(0 <= value <= 1 for value in answer.values())


def test_a_joint_model_draws_and_explains(tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(model(tmp_path, "joint", width=8, multipliers=(1, 1), blocks=1, attention_at=()))
    assert cli.main(["sample", folder, "--images", "3", "--steps", "2", "--out", str(tmp_path / "drawn")]) == 0
    assert (tmp_path / "drawn" / "generated.png").is_file()
    assert cli.main(["explain", folder, str(image), "effusion", "--out", str(tmp_path / "explained.png")]) == 0
    assert (tmp_path / "explained.png").is_file()
    assert cli.main(["explain", folder, str(image), "fracture"]) == 1
    assert "which knows: nodule, effusion" in capsys.readouterr().err


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
