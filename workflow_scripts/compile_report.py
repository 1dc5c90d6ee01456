"""Bind what the finished jobs made into one HTML page, by a Snakemake of its own."""

import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from jointdiff.files import atomic_path
from jointdiff.logs import to_rule_log


def main(rule):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config, atomic_path(rule.output[0]) as aside:
        yaml.safe_dump(rule.config, config)
        config.flush()
        command = [sys.executable, "-m", "snakemake", "finished", "--report", str(aside), "--nolock", "--quiet"]
        command += ["--snakefile", str(Path(rule.scriptdir).parent / "Snakefile"), "--workflow-profile", "none"]
        done = subprocess.run([*command, "--configfile", config.name], capture_output=True, text=True)
        print(done.stdout, done.stderr)
        if done.returncode:
            raise ValueError(f"Snakemake could not make the report; its output is in {rule.log[0]}")


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
