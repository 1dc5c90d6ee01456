"""The profiles: Snakemake reads them, the executors take their settings, and every rule that they name exists."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake.cli import parse_args
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

from tests.conftest import ROOT
from tests.workflow.flow import copy_tree, small, snakemake

needs_plugins = pytest.mark.skipif(
    any(find_spec(f"snakemake_executor_plugin_{name}") is None for name in ("slurm", "kubernetes")),
    reason="needs Snakemake's plugins: uv run --group cluster pytest tests/workflow/test_profiles.py",
)
PROFILES = sorted(path.parent.name for path in ROOT.glob("profiles/*/config.yaml"))
# What a dry run asks about what is there already: a bucket would have to answer.
HERE = ("--default-storage-provider", "fs", "--default-storage-prefix", "stored")


def read(profile: str) -> Any:
    _, arguments = parse_args(["--workflow-profile", str(ROOT / "profiles" / profile)])
    return arguments


def executor_settings(profile: str) -> Any:
    arguments = read(profile)
    return ExecutorPluginRegistry().get_plugin(arguments.executor).get_settings(arguments)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_key_says_what_it_is_for(profile: str) -> None:
    lines = (ROOT / "profiles" / profile / "config.yaml").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if re.match(r"[a-z]", line) and "# " not in line] == []


@pytest.mark.parametrize("profile", PROFILES)
def test_the_rules_that_it_names_exist(profile: str) -> None:
    rules = set(re.findall(r"^\s*(?:use )?rule (\w+)(?: as (\w+) with)?:", "\n".join(
        path.read_text(encoding="utf-8") for path in ROOT.glob("rules/*.smk")
    ), flags=re.MULTILINE))  # fmt: skip
    known = {name for pair in rules for name in pair if name}
    settings = yaml.safe_load((ROOT / "profiles" / profile / "config.yaml").read_text(encoding="utf-8"))
    named = {name for key in ("set-resources", "set-threads", "groups") for name in settings.get(key, {})}
    assert named <= known, f"{profile} names rules that do not exist"
    assert set(settings.get("group-components", {})) == set(settings.get("groups", {}).values())


@needs_plugins
def test_slurm_has_its_settings() -> None:
    settings = executor_settings("slurm")
    assert settings.requeue and settings.init_seconds_before_status_checks == 20


@needs_plugins
def test_kubernetes_has_its_settings() -> None:
    settings, arguments = executor_settings("kubernetes"), read("kubernetes")
    assert [(volume.name, volume.path) for volume in settings.persistent_volumes] == [
        ("jointdiff-state", Path("/workdir/state"))
    ]
    assert arguments.default_storage_prefix.startswith("s3://") and arguments.default_storage_provider == "s3"
    assert arguments.container_image


@needs_plugins
@pytest.mark.workflow
def test_jobs_ask_for_what_the_profile_says(tmp_path: Path) -> None:
    config = small(copy_tree(tmp_path), training={"steps": 4, "device": "auto"})
    for profile, said in {
        "workstation": "mem_mb=6000",
        "gpus": "mem_mb=24000",
        "slurm": "mem_mb=24000",
        "kubernetes": "mem_mb=24000",
    }.items():
        plan = snakemake(
            tmp_path, "--dry-run", "--workflow-profile", f"profiles/{profile}", "--configfile", str(config),
            *(HERE if profile == "kubernetes" else ()),
        )  # fmt: skip
        training = plan.partition("rule train_method:")[2].partition("\n\n")[0]
        resources = re.search(r"resources: (.*)", training)
        assert resources and said in resources[1], profile
