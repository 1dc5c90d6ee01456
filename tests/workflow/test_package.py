"""The workflow without its source tree: installed from a wheel, and as a module of another workflow."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

from jointdiff.environment import commit_of
from jointdiff.paths import snakefile
from tests.conftest import ROOT, require
from tests.workflow.flow import SMOKE, environment

DOCUMENT = (ROOT / "docs/package.md").read_text(encoding="utf-8")
TINY = {
    "name": "study",
    "seeds": [0],
    "datasets": {"phantom": {"size": 16, "labels": [20], "options": {"patients": 30, "images_per_patient": 2}}},
    "methods": {"random": {}, "diffusion_classifier": {}},
    "evaluation": {"extractor": "random"},
}
WITHOUT_TREE = """
from pathlib import Path
import baselines, jointdiff
from jointdiff.declared import abilities
from jointdiff.registry import methods, sources
assert "site-packages" in Path(jointdiff.__file__).parts and "site-packages" in Path(baselines.__file__).parts
assert {"joint", "fixmatch"} <= set(methods()) and {"own", "phantom"} <= set(sources())
assert abilities("diffusion_classifier") == {"counterfactual", "generate", "latents", "vote"}
"""


def example() -> str:
    """Return the outer Snakefile that the document shows."""
    found = re.search(r"`Snakefile`\n\n```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert found
    return found[1]


def outer(folder: Path, text: str, config: dict[str, Any]) -> Path:
    (folder / "Snakefile").write_text(text, encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def ran(folder: Path, *command: str | Path, fails: bool = False, **environ: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stdout[-8000:]
    return done.stdout


def planned(folder: Path, *, fails: bool = False) -> str:
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "-n"]
    return ran(folder, *command, fails=fails, **environment(ROOT))


BARE = """
configfile: "config.yaml"
module jointdiff:
    snakefile: "SNAKEFILE"
    config: config
USE
"""
USES = {
    "under the same names": ("use rule * from jointdiff", r"^classify_by_votes +1$", "output: results/study/scores"),
    "renamed": ("use rule * from jointdiff as b_*", r"^b_classify_by_votes +1$", "output: results/study/scores"),
    "below a prefix": ("    prefix: 'in'\nuse rule * from jointdiff", r"^all +1$", "output: in/results/study/scores"),
    "elsewhere": ("    pathvars: results='out'\nuse rule * from jointdiff", r"^all +1$", "output: out/scores.parquet"),
}  # fmt: skip


@pytest.mark.workflow
@pytest.mark.parametrize("use", USES)
def test_another_workflow_has_this_one_as_a_module(tmp_path: Path, use: str) -> None:
    statement, jobs, output = USES[use]
    outer(tmp_path, BARE.replace("SNAKEFILE", str(snakefile())).replace("USE", statement), TINY)
    said = planned(tmp_path)
    assert re.search(jobs, said, re.MULTILINE)
    assert output in said
    assert "not present in the Snakefile" not in said, "local rules are known by the names that they have here"


@pytest.mark.workflow
def test_a_module_is_not_the_default_target_of_a_workflow_that_has_one(tmp_path: Path) -> None:
    said = planned(outer(tmp_path, example(), {"samples": 3, "jointdiff": TINY}))
    for rule in ("all", "summarise", "jointdiff_collect_scores", "jointdiff_compile_report"):
        assert re.search(rf"^{rule} +1$", said, re.MULTILINE)
    assert "jointdiff_sync_tracking" not in said, "nobody asks for it"


@pytest.mark.workflow
def test_a_module_s_configuration_is_checked(tmp_path: Path) -> None:
    text = BARE.replace("SNAKEFILE", str(snakefile())).replace("USE", "use rule * from jointdiff")
    assert "unknown key 'samples'" in planned(outer(tmp_path, text, {"samples": 3, **TINY}), fails=True)


@pytest.mark.workflow
def test_a_module_without_a_configuration_runs_no_default(tmp_path: Path) -> None:
    text = BARE.replace("SNAKEFILE", str(snakefile())).replace("    config: config\nUSE", "use rule * from jointdiff")
    assert "config/config.yaml but it is not present" in planned(outer(tmp_path, text, TINY), fails=True)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of an environment into which nothing but a wheel and what it needs was installed."""
    if not os.environ.get("JOINTDIFF_REQUIRE_TOOLS"):
        pytest.skip("builds an environment of its own: in continuous integration alone")
    folder = tmp_path_factory.mktemp("installed")
    # The versions of this environment, which uv has at hand.
    versions = "\n".join(f"{found.name}=={found.version}" for found in distributions() if "+" not in found.version)
    (folder / "versions.txt").write_text(versions, encoding="utf-8")
    uv = require("uv")
    subprocess.run([uv, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder / "env"], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", folder / "env", "--constraint", folder / "versions.txt"]
    subprocess.run([*install, wheel], check=True, cwd=ROOT)  # where pyproject.toml says until when packages count
    return folder / "env" / "bin"


@pytest.fixture
def clean(programs: Path) -> dict[str, str]:
    """The environment of a shell that knows those programs and no source tree."""
    known = environment(ROOT, PATH=f"{programs}:{os.environ['PATH']}")
    return {key: value for key, value in known.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}


@pytest.mark.package
def test_a_wheel_holds_all_that_the_source_tree_has(programs: Path, clean: dict[str, str], tmp_path: Path) -> None:
    ran(tmp_path, programs / "python", "-c", WITHOUT_TREE, **clean)
    installed = Path(ran(tmp_path, programs / "jointdiff", "workflow", **clean).strip()).parent
    assert "site-packages" in installed.parts
    parts = ["Snakefile", *(f"{name}/**/*.*" for name in ("config", "docs/report", "profiles", "rules"))]
    parts += [f"{package}/**/*.{kind}" for package in ("jointdiff", "baselines") for kind in ("py", "json", "csv")]
    for path in (path for part in [*parts, "workflow_scripts/*.py"] for path in ROOT.glob(part) if path.is_file()):
        name = path.relative_to(ROOT)
        home = installed.parents[1] if name.parts[0] in ("jointdiff", "baselines") else installed
        assert (home / name).read_bytes() == path.read_bytes()
    asked = "from jointdiff.environment import commit; print(commit())"
    assert ran(tmp_path, programs / "python", "-c", asked, **clean).strip() == commit_of(ROOT), "told when it was built"


@pytest.mark.package
def test_commands_of_a_wheel_work_in_an_empty_folder(programs: Path, clean: dict[str, str], tmp_path: Path) -> None:
    assert "phantom" in ran(tmp_path, programs / "jointdiff", "data", "list", **clean)
    assert "wrote schema.json" in ran(tmp_path, programs / "jointdiff", "schema", **clean)
    assert (tmp_path / "schema.json").read_bytes() == (ROOT / "jointdiff/schema.json").read_bytes()
    installed = ran(tmp_path, programs / "jointdiff", "workflow", **clean).strip()
    said = ran(tmp_path, programs / "snakemake", "--snakefile", installed, "--cores", "1", "-n", **clean)
    assert "results/default/report.html" in said


@pytest.mark.package
def test_the_smoke_grid_runs_from_a_wheel_as_a_module(programs: Path, clean: dict[str, str], tmp_path: Path) -> None:
    """As a module, which is the harder way; the plain workflow of the wheel then finds all of it done."""
    smoke = yaml.safe_load((ROOT / SMOKE).read_text(encoding="utf-8"))
    outer(tmp_path, example(), {"jointdiff": {**smoke, "name": "study"}})
    ran(tmp_path, programs / "snakemake", "--cores", "2", **clean)
    results = tmp_path / "results" / "study"
    assert (results / "report.html").stat().st_size
    assert (results / "phantom/labels-40/diffusion_classifier/seed-0/votes.parquet").stat().st_size
    assert len((tmp_path / "summary.txt").read_text(encoding="utf-8").splitlines()) > 100
    installed = ran(tmp_path, programs / "jointdiff", "workflow", **clean).strip()
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump({**smoke, "name": "study"}), encoding="utf-8")
    plain = [programs / "snakemake", "results/study/report.html", "--snakefile", installed, "--cores", "1", "-n"]
    assert "Nothing to be done" in ran(tmp_path, *plain, "--configfile", "plain.yaml", **clean)
