import io
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from jointdiff.devices import pick_device, pick_precision
from jointdiff.files import atomic_path, read_json, remove_leftovers, sha256, write_json
from jointdiff.logs import Tee
from jointdiff.method import to_bytes, to_unit_range
from jointdiff.paths import relative_if_below
from jointdiff.progress import Progress
from jointdiff.seeding import derive, rng
from jointdiff.text import decode_text
from jointdiff.training.selection import macro_auroc


def test_a_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_replaces_a_folder(tmp_path):
    for content in ("old", "new"):
        with atomic_path(tmp_path / "model") as aside:
            aside.mkdir()
            (aside / content).write_text(content)
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["new"]


def test_broken_json_names_its_file(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is not valid JSON"):
        read_json(tmp_path / "run.json")


def test_sha256_of_a_known_text(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_seeds_depend_on_every_word_of_their_purpose():
    seeds = {derive(0, "a"), derive(1, "a"), derive(0, "b"), derive(0, "a", 1), derive(0, "a", 2), derive(0, "a", 12)}
    assert len(seeds) == 6
    assert all(0 <= s < 2**63 for s in seeds)
    assert rng(0, "x", 3).random() == rng(0, "x", 3).random()


def test_bytes_survive_the_unit_range():
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    assert torch.equal(to_bytes(to_unit_range(every)), every)
    assert to_unit_range(every).min() == -1
    assert to_unit_range(every).max() == 1


def test_selection_equals_scikit_learn():
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    labels = random.integers(0, 2, (80, 3)).astype(float)
    scores = random.random((80, 3)).round(1)
    assert macro_auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores, average="macro"), abs=1e-12)
    labels[:, 0] = 1.0  # a finding that everybody has cannot be ranked
    labels[0, 1] = np.nan
    expected = (roc_auc_score(labels[1:, 1], scores[1:, 1]) + roc_auc_score(labels[:, 2], scores[:, 2])) / 2
    assert macro_auroc(scores, labels) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(macro_auroc(scores[:, :1], labels[:, :1]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_one_clear_message():
    with pytest.raises(ValueError, match=r"training\.device: 'cuda' is asked for, but torch finds no GPU"):
        pick_device("cuda")


def test_precision_is_what_was_asked_for():
    assert pick_precision("fp32", torch.device("cpu")) == "fp32"
    assert pick_precision("auto", torch.device("cpu")) in {"fp32", "bf16"}


def test_progress_in_a_log_is_plain_lines(capfd):
    with Progress("work", total=4, unit="images", every=0.0) as progress:
        for _ in range(4):
            progress.advance(note="loss 0.1")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("work: 1/4 images, ")
    assert "left, loss 0.1" in lines[0]
    assert "took" in lines[-1]
    assert os.linesep not in lines[0]


def test_what_is_said_after_a_log_has_ended_reaches_the_others(tmp_path):
    terminal = io.StringIO()
    with (tmp_path / "log").open("w") as log:
        both = Tee(terminal, log)
        both.write("one ")
    both.write("two")
    both.flush()
    assert terminal.getvalue() == "one two" and (tmp_path / "log").read_text() == "one "


@pytest.mark.parametrize("name", ["x" * 251 + ".png", "ü" * 125 + ".npz", "Höhle.png"])
def test_a_name_at_the_limit_is_written_whole_and_leftovers_of_it_are_found(tmp_path, name):
    with atomic_path(tmp_path / name) as aside:
        aside.write_text("whole")
        assert aside.suffix == Path(name).suffix
    assert [path.name for path in tmp_path.iterdir()] == [name]
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / aside.name.replace(str(os.getpid()), str(gone.pid))).touch()
    remove_leftovers(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_text_is_read_in_the_forms_that_programs_write():
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        assert decode_text("Höhle\n".encode(encoding), name="x") == "Höhle\n"
    with pytest.raises(UnicodeError, match=r"x\.txt, row 2: this is no UTF-8"):
        decode_text("a\r\xfc".encode("latin-1"), name="x.txt")


def test_a_path_below_the_working_directory_moves_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project" / "my scans").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    assert relative_if_below("my scans") == relative_if_below(Path.cwd() / "my scans") == "my scans"
    assert relative_if_below(tmp_path / "scans") == str(tmp_path / "scans")
    assert relative_if_below(".") == str(tmp_path / "project")
