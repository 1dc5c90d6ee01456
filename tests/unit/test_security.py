"""What comes from outside (names, cells, files, models) does nothing but be read, and secrets show nowhere."""

from __future__ import annotations

import csv
import io
import os
import re
import struct
import time
import zlib
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from pydicom.uid import DeflatedExplicitVRLittleEndian

from jointdiff import cli, tracking
from jointdiff.config import ConfigError, Generation, load_experiment, parse_experiment
from jointdiff.data.images import decode_image
from jointdiff.data.masks import decode_mask
from jointdiff.data.own.files import Files
from jointdiff.data.own.inspection import inspect
from jointdiff.data.own.tables import read_table
from jointdiff.data.prepare import prepare
from jointdiff.data.source import DataError
from jointdiff.data.splits import split_dataset
from jointdiff.evaluate.scores import write_csv
from jointdiff.inference.generate import generate
from jointdiff.models import load_model
from jointdiff.pictures import save_grid, save_overlay, save_pairs, save_strips
from jointdiff.report.audit import draw_audit
from jointdiff.training.loop import train
from tests.tiny import tiny_phantoms, tiny_run

# Broken as a formula of LaTeX and of matplotlib, markup, a link that runs a script, a formula of a spreadsheet.
FORMULA, MARKUP, LINK, TEX = "=cmd|'/C calc'!A1", "<script>alert(1)</script>", "[x](javascript:alert(1))", r"$\frac$ $"
EVIL = [FORMULA, MARKUP, LINK, TEX]


class Tags(HTMLParser):
    """Collects the elements of a page and what it says."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


# Names and cells


@pytest.mark.parametrize("lead", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_no_cell_is_a_formula_and_numbers_stay_numbers(tmp_path: Path, lead: str) -> None:
    write_csv(tmp_path / "t.csv", [f"{lead}A1", "n"], [[f"{lead}1+1", -0.5], [f"a{lead}1", -3]])
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as stream:
        read = list(csv.reader(stream))
    shown = lead.replace("\r", "\n")  # a lone \r would end the line for spreadsheets, and what follows begin a cell
    assert read == [[f"'{shown}A1", "n"], [f"'{shown}1+1", "-0.5"], [f"a{shown}1", "-3"]]


def test_a_users_hostile_names_go_through_preparing_auditing_training_and_drawing(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 16), dtype=np.uint8)
    pixels[12:] = pixels[:12]  # each test image is one of the training side, so that the audit names it
    no_path = dict.fromkeys(map(ord, "/:\\"))
    names = [f"={EVIL[i % 4].translate(no_path)} {i}.png" for i in range(24)]
    (tmp_path / "scans").mkdir()
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image).save(tmp_path / "scans" / name)
    with (tmp_path / "scans/labels.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["path", "split", *EVIL])
        rows.writerows(
            [name, "test" if i >= 12 else "train", *(int((i >> k) % 2) for k in range(4))]
            for i, name in enumerate(names)
        )
    options = {"path": str(tmp_path / "scans"), "labels": EVIL, "split": "split", "title": MARKUP, "cite": LINK}
    prepare("own", tmp_path, tmp_path / "store", size=16, options=options)
    split = tmp_path / "labels-8/split-0.parquet"
    split_dataset(tmp_path / "store", out=split, budget="8", lists={}, seed=0, validation=0.25, test=0.25)

    out = {kind: tmp_path / f"audit.{kind}" for kind in ("csv", "html", "png")}
    draw_audit(tmp_path / "store", [split], table=out["csv"], page=out["html"], picture=out["png"])
    page = Tags(out["html"].read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert "<script>" in page.text
    with out["csv"].open(newline="", encoding="utf-8") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row]
    assert any(cell.startswith("'=") for cell in cells)
    assert not any(cell.startswith("=") for cell in cells)

    cell = tmp_path / "cell"
    run = tiny_run("joint", dataset="own", steps=1, validate_every=1)
    train(run, store=tmp_path / "store", split=split, out=cell, state=tmp_path / "state", code_version="")
    card = (cell / "model/README.md").read_text(encoding="utf-8")
    assert "<" not in card.replace("<br>", "")
    assert r"\[x\](javascript" in card
    assert not re.search(r"(?<!\\)\[x(?<!\\)\]", card)
    settings = Generation(images=8, steps=1)
    generate(cell / "model", out=tmp_path / "g.npz", picture=tmp_path / "g.png", seed=0, settings=settings)
    assert Image.open(tmp_path / "g.png").width > 100


def test_no_text_of_a_picture_is_a_formula(tmp_path: Path) -> None:
    images, maps = np.zeros((2, 8, 8, 1), dtype=np.uint8), np.zeros((2, 8, 8), dtype=np.float32)
    rows = [TEX, "a\n" + TEX]
    save_grid(images, tmp_path / "grid.png", rows=rows, per_row=1, title=TEX)
    save_strips({TEX: images}, np.zeros((2, 8, 8), dtype=bool), tmp_path / "strips.png", rows=rows, title=TEX)
    save_pairs(images, tmp_path / "pairs.png", captions=[f"{TEX}\nb"], title=TEX)
    save_overlay({"image": images}, maps, tmp_path / "over.png", rows=rows, title=TEX, scale="share")
    assert len(list(tmp_path.glob("*.png"))) == 4


# Files


def png_that_declares(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that says it is huge."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [12_000, 100_000, 2**31 - 1])
@pytest.mark.parametrize("decode", [decode_image, decode_mask])
def test_a_png_that_declares_billions_of_pixels_is_refused(side: int, decode: Any) -> None:
    with pytest.raises(DataError, match=r"bomb\.png .*(more than 134 million pixels|does not decode)"):
        decode(png_that_declares(side, side), name="bomb.png")


def test_a_dicom_file_that_inflates_is_refused_before_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def inflates(*_: Any) -> bytes:
        raise AssertionError("the whole file was inflated")

    uid = DeflatedExplicitVRLittleEndian.encode()
    uid += b"\0" * (len(uid) % 2)
    # First an element of 70,000 bytes, so that no look at the beginning finds the UID.
    version = struct.pack("<HH2sHI", 2, 1, b"OB", 0, 70_000) + b"\0" * 70_000
    meta = version + struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid
    length = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta))
    packed = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = packed.compress(b"\0" * (1 << 20)) + packed.flush()
    monkeypatch.setattr(zlib, "decompress", inflates)
    with pytest.raises(DataError, match=r"scan\.dcm is a deflated DICOM file.*export it uncompressed"):
        decode_image(b"\0" * 128 + b"DICM" + length + meta + bomb, name="scan.dcm")


def test_a_pipe_among_images_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"1\.png is no regular file"):
        Files(tmp_path).read("1.png")
    (tmp_path / "labels.csv").write_text("path,y\n1.png,1\n")
    assert "is no regular file" in inspect(tmp_path).text()


def test_a_small_parquet_table_that_unpacks_to_gigabytes_is_refused() -> None:
    stream = io.BytesIO()
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, dtype=np.int8)), pa.array(["x" * 10_000]))
    parquet.write_table(pa.table({"path": column}), stream)
    assert len(stream.getvalue()) < 100_000
    with pytest.raises(DataError, match=r"labels\.parquet unpacks to more than 268435456 letters and cells; divide it"):
        read_table(stream.getvalue(), name="labels.parquet")


# Configurations


BASE: dict[str, Any] = {
    "name": "x", "seeds": [0], "datasets": {"phantom": {"size": 16, "labels": [10]}}, "methods": {"supervised": {}},
}  # fmt: skip
LAUGHS = "a0: &a0 [x, x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (f"{LAUGHS}name: *a39\n", "more than 100,000 values"),
        ("name: &a [*a]\n", "do aliases"),
        ("name: " + "[" * 3000, "nested too deeply"),
        ("name: !!python/object/apply:os.system [touch RAN]\n", "could not determine a constructor"),
    ],
)
def test_a_hostile_yaml_file_ends_in_one_message_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text(content)
    started = time.process_time()
    with pytest.raises(ConfigError, match=rf"bad\.yaml.*{says}") as caught:
        load_experiment("bad.yaml")
    assert time.process_time() - started < 20  # spelled out it would take years
    assert len(str(caught.value)) < 1000
    assert not Path("RAN").exists()


@pytest.mark.parametrize("name", ["../../x", "/etc", "a/b", "..", "a\nb", "a b", "$(id)", "", "é"])
def test_no_name_of_a_configuration_leaves_its_folder(name: str) -> None:
    method = {"method": "supervised"}
    for changes in (
        {"name": name},
        {"datasets": {name: {"source": "phantom", "size": 16, "labels": [10]}}},
        {"methods": {name: method}},
        {"autoencoders": {name: {}}},
        {"datasets": {"phantom": {"size": 16, "labels": [f"list {name}"], "lists": {name: "/etc/passwd"}}}},
        {"methods": {"supervised": {"method": f"{name}x/"}}},
    ):
        with pytest.raises(ConfigError):
            parse_experiment({**BASE, **changes})


@pytest.mark.parametrize(
    ("address", "refused"),
    [
        ("https://me:hunter2@host/mirror", True),
        ("postgresql://me:hunter2/3@host/mlflow", True),
        ("https://host/mirror?sig=hunter2", True),
        ("https://host:8080/mirror@2", False),
        ("postgresql://me@host:5432/mlflow", False),
        ("/data/mirror", False),
    ],
)
def test_a_secret_in_a_configuration_is_refused_for_reports_show_it(address: str, refused: bool) -> None:
    for changes, variable in (
        ({"mirror": address}, "JOINTDIFF_MIRROR"),
        ({"tracking": {"uri": address}}, "MLFLOW_TRACKING_URI"),
    ):
        if not refused:
            parse_experiment({**BASE, **changes})
            continue
        with pytest.raises(ConfigError, match=variable) as caught:
            parse_experiment({**BASE, **changes})
        assert "hunter2" not in str(caught.value)


# Models


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("RAN",)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_phantoms(tmp_path_factory.mktemp("data"), labelled=12, validation=8, unlabelled=16, test=12)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "unet/diffusion_pytorch_model.BIN", "a.pt", "a.pkl", "a.ckpt"])
def test_a_model_folder_with_a_pickle_is_refused(
    tmp_path: Path, data: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    train(tiny_run("random", steps=0), **data, out="cell", state="state", code_version="")
    folder = Path("cell/model")
    load_model(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    torch.save(Bomb(), folder / name)
    with pytest.raises(ValueError, match=rf"cell/model holds {re.escape(name)}, a pickle .*only safetensors are read"):
        load_model(folder)
    (folder / name).unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"cell/model has no model\.safetensors"):
        load_model(folder)
    assert not Path("RAN").exists()


def test_no_network_is_read_from_a_pickle_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import UNet2DModel

    from jointdiff.nets.components import ConditionalDenoiser

    monkeypatch.chdir(tmp_path)
    net = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(32,), layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), num_class_embeds=3,
    )  # fmt: skip
    net.save_pretrained("net")
    ConditionalDenoiser.from_pretrained("net")
    Path("net/diffusion_pytorch_model.safetensors").unlink()
    torch.save(net.state_dict(), "net/diffusion_pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        ConditionalDenoiser.from_pretrained("net")


# Secrets and servers


def test_secrets_of_the_environment_show_nowhere(
    tmp_path: Path, data: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secrets = {
        "HF_TOKEN": "hunter2-a",
        "MLFLOW_TRACKING_USERNAME": "hunter2-b",
        "MLFLOW_TRACKING_PASSWORD": "hunter2-c",
        "MLFLOW_TRACKING_TOKEN": "hunter2-d",
        "MLFLOW_TRACKING_URI": "postgresql://me:hunter2-e@host/mlflow?password=hunter2-f",
        "JOINTDIFF_MIRROR": "https://me:hunter2-g@host/mirror?sig=hunter2-h",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["doctor", "--results", str(tmp_path)]) == 0
    train(
        tiny_run("supervised", steps=2, validate_every=1),
        **data,
        out=tmp_path / "cell",
        state=tmp_path / "state",
        code_version="",
    )
    said = "".join(capsys.readouterr())
    assert "host/mirror" in said and "host/mlflow" in said
    assert "hunter2" not in said
    written = [path for path in (tmp_path / "cell").rglob("*") if path.is_file()]
    assert {"run.json", "README.md", "metrics.jsonl"} <= {path.name for path in written}
    assert not [path for path in written if b"hunter2" in path.read_bytes()]


def test_mlflow_is_served_to_this_machine_alone_and_its_password_is_not_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[list[str]] = []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:hunter2@127.0.0.1/mlflow")
    monkeypatch.setattr(tracking, "list_experiments", lambda uri: [])
    monkeypatch.setattr(os, "execv", lambda program, arguments: started.append(arguments))
    cli.main(["mlflow", "--results", str(tmp_path)])
    (command,) = started
    assert command[command.index("--host") + 1] == "127.0.0.1"
    said = capsys.readouterr().out
    assert "http://127.0.0.1:5000" in said
    assert "hunter2" not in said


def test_links_to_a_server_bear_no_password_and_the_key_of_a_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is what makes a link show its page; nobody gets in by it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter2@there")
    experiment = SimpleNamespace(name="x", experiment_id="1", tags={})
    monkeypatch.setattr(tracking, "list_experiments", lambda uri: [experiment])
    monkeypatch.setattr(tracking, "links", lambda server, *_: {"runs": f"{server}/#/runs?viewStateShareKey=k3y"})
    assert tracking.page_links(tmp_path) == {"x, runs": "https://there/#/runs?viewStateShareKey=k3y"}
