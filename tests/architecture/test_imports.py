"""Who may import whom, read from the code itself, and what a training does without."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = sorted((ROOT / "jointdiff").rglob("*.py"))
BASELINES = sorted((ROOT / "baselines").glob("*.py"))
SCRIPTS = sorted((ROOT / "workflow_scripts").glob("*.py"))
RULES = [ROOT / "Snakefile", *sorted((ROOT / "rules").glob("*.smk"))]
# What Snakefile and rules may import: modules that import neither torch nor pandas themselves.
LIGHT = {
    f"jointdiff.{name}"
    for name in (
        "config",
        "config_file",
        "data.manifest",
        "declared",
        "doctor",
        "jobs",
        "paths",
        "provenance",
        "questions",
        "registry",
    )
}


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    """Yield every module that a file names in an import at run time, at its top or inside a function."""
    yield from _imports(ast.parse(path.read_text(encoding="utf-8")))


def _imports(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, "imports are absolute, so that they can be read"
        yield node.module or ""
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from _imports(child)


def names(path: Path, *packages: str) -> set[str]:
    return {name for name in imports(path) for package in packages if f"{name}.".startswith(f"{package}.")}


@pytest.mark.parametrize("path", LIBRARY, ids=short)
def test_the_library_knows_neither_the_workflow_nor_the_baselines(path: Path) -> None:
    assert not names(path, "snakemake", "baselines", "workflow_scripts", "rules")


@pytest.mark.parametrize("path", LIBRARY + BASELINES + SCRIPTS, ids=short)
def test_one_module_imports_mlflow_and_does_so_late(path: Path) -> None:
    if path.name == "mlflow_store.py":
        top = ast.parse(path.read_text(encoding="utf-8")).body
        assert not [name for node in top for name in _imports(node) if name.startswith("mlflow") and _is_import(node)]
    else:
        assert not names(path, "mlflow")


def _is_import(node: ast.AST) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


@pytest.mark.parametrize("room", ["explain", "evaluate", "data", "diffusion", "nets", "training", "report"])
def test_rooms_know_the_contract_and_no_method(room: str) -> None:
    for path in (ROOT / "jointdiff" / room).rglob("*.py"):
        assert not names(path, "jointdiff.methods"), short(path)


@pytest.mark.parametrize("path", sorted((ROOT / "jointdiff" / "report").rglob("*.py")), ids=short)
def test_the_report_reads_rows_and_needs_no_torch(path: Path) -> None:
    heavy = (
        "torch",
        "jointdiff.methods",
        "jointdiff.training",
        "jointdiff.nets",
        "jointdiff.inference",
        "jointdiff.models",
    )
    assert not names(path, *heavy)


@pytest.mark.parametrize("path", BASELINES, ids=short)
def test_baselines_use_the_library_alone(path: Path) -> None:
    assert not names(path, "jointdiff.training", "jointdiff.evaluate", "jointdiff.report", "jointdiff.methods")


@pytest.mark.parametrize("path", SCRIPTS, ids=short)
def test_a_script_is_a_thin_adapter_named_as_its_rule(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    assert not names(path, "workflow_scripts", "torch", "pandas", "numpy")
    assert text.startswith('"""')
    assert 'if __name__ == "__main__":\n    with to_rule_log(snakemake):\n        main(snakemake)\n' in text
    rules = "".join(rule.read_text(encoding="utf-8") for rule in RULES)
    assert f"rule {path.stem}:" in rules
    assert f'"../workflow_scripts/{path.name}"' in rules
    assert f"<logs>/{path.stem}" in rules


@pytest.mark.parametrize("path", RULES, ids=short)
def test_rules_import_light_modules_alone(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(("from ", "import ")) and ("jointdiff" in line or "baselines" in line):
            assert line.split()[1] in LIGHT, line


def modules_after(code: str) -> set[str]:
    """Return the modules loaded by a fresh Python that ran ``code``."""
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    )


@pytest.mark.parametrize("module", [*sorted(LIGHT), "jointdiff.logs", "jointdiff.tracking", "jointdiff.cli"])
def test_light_modules_are_light(module: str) -> None:
    assert not modules_after(f"import {module}") & {"torch", "pandas", "mlflow", "snakemake", "sklearn", "matplotlib"}


@pytest.mark.parametrize(
    "module",
    ["jointdiff.evaluate.classification", "jointdiff.evaluate.scores", "jointdiff.evaluate.cost",
     "jointdiff.explain.localisation", "jointdiff.data.store", "jointdiff.data.splits"],
)  # fmt: skip
def test_steps_that_move_tables_do_without_torch(module: str) -> None:
    assert not modules_after(f"import {module}") & {"torch", "mlflow", "snakemake", "sklearn", "matplotlib"}


WITHOUT = """
import sys
from importlib.machinery import PathFinder
from pathlib import Path

find = PathFinder.find_spec
absent = {"snakemake", "mlflow", "cleanfid"}
PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.partition(".")[0] in absent else find(name, *rest)
)
from jointdiff.config import RunSpec, Training
from jointdiff.data.prepare import prepare
from jointdiff.data.splits import draw_split
from jointdiff.data.store import open_store
from jointdiff.inference.classify import classify
from jointdiff.training.loop import train

here = Path(sys.argv[1])
options = {"patients": 20, "images_per_patient": 2}
prepare("phantom", here, here / "store", size=16, options=options)
split = draw_split(open_store(here / "store"), budget="20", seed=0, validation=0.3, test=0.3)
split.to_parquet(here / "split.parquet")
run = RunSpec(experiment="e", dataset="phantom", size=16, options=options, labels="20", variant="supervised",
              method="supervised", seed=0, settings={"depth": 10, "width": 1},
              training=Training(steps=2, batch_size=4, device="cpu"))
train(run, store=here / "store", split=here / "split.parquet", out=here / "cell", state=here / "state")
classify(here / "cell/model", store=here / "store", split=here / "split.parquet", out=here / "predictions.parquet")
assert (here / "predictions.parquet").is_file()
"""


def test_the_library_trains_where_snakemake_mlflow_and_cleanfid_are_absent(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
