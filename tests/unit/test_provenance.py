"""A digest of code: it changes with what the code does, and with nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jointdiff import provenance
from jointdiff.provenance import code_version

LOSS = '''"""Docstring."""
from {package} import helper

def loss(x):
    """What it is."""
    from {package}.late import scale  # imported late
    return helper.square(x) * scale
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    name = f"made_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "loss.py").write_text(LOSS.format(package=name))
    (folder / "helper.py").write_text("def square(x):\n    return x * x\n")
    (folder / "late.py").write_text("scale = 2\n")
    (folder / "typed.py").write_text("scale = 3\n")
    (folder / "other.py").write_text("scale = 4\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def version(folder: Path, *modules: str) -> str:
    for cached in (provenance.code_version, provenance._file, provenance._read):
        cached.cache_clear()
    return code_version(*(f"{folder.name}.{module}" for module in modules))


def test_comments_docstrings_and_layout_do_not_count(package: Path) -> None:
    before = version(package, "loss")
    text = (package / "loss.py").read_text().replace("What it is", "Something else").replace("# imported", "# late")
    (package / "loss.py").write_text("\n\n" + text.replace("x) * scale", "x)  *  scale"))
    assert version(package, "loss") == before


@pytest.mark.parametrize("name", ["loss", "helper", "late"])
def test_any_code_that_is_imported_counts_even_late(package: Path, name: str) -> None:
    before = version(package, "loss")
    path = package / f"{name}.py"
    path.write_text(path.read_text().replace("x * x", "x * x * x").replace("= 2", "= 5").replace("* scale", "+ scale"))
    assert version(package, "loss") != before


def test_other_modules_and_imports_for_type_checkers_do_not_count(package: Path) -> None:
    path = package / "loss.py"
    path.write_text(path.read_text() + f"\nif TYPE_CHECKING:\n    from {package.name}.typed import scale\n")
    before = version(package, "loss")
    for name in ("typed", "other"):
        (package / f"{name}.py").write_text("scale = 6\n")
    assert version(package, "loss") == before


def test_a_relative_import_is_followed(package: Path) -> None:
    (package / "near.py").write_text("from . import helper\nfrom .late import scale\n")
    before = version(package, "near")
    (package / "late.py").write_text("scale = 7\n")
    assert version(package, "near") != before


def test_an_unknown_module_is_named(package: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        version(package, "nowhere")


def test_what_only_watches_a_training_does_not_count() -> None:
    seen = provenance._read(provenance._file("jointdiff.training.loop"), "jointdiff.training.loop")[1]  # type: ignore[arg-type]
    assert "jointdiff.progress" in seen
    assert "jointdiff.progress" in provenance.OBSERVERS


def test_reading_code_imports_nothing_heavy() -> None:
    import subprocess

    script = (
        "import sys; from jointdiff.provenance import code_version; code_version('jointdiff.training.loop');"
        "code_version('jointdiff.methods.joint', 'baselines.fixmatch');"
        "assert not {'torch', 'pandas', 'mlflow', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
