"""Bind what the finished jobs made into one HTML page, by a Snakemake of its own."""

import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from jointdiff.evaluate.scores import read_rows
from jointdiff.files import atomic_path
from jointdiff.logs import to_rule_log
from jointdiff.paths import snakefile
from jointdiff.report.landing import landing_page


def main(rule):
    with tempfile.TemporaryDirectory() as folder, atomic_path(rule.output[0]) as aside:
        config, landing = Path(folder, "config.yaml"), Path(folder, "landing.yaml")
        config.write_text(yaml.safe_dump({**rule.config, "pathvars": rule.params.pathvars}), encoding="utf-8")
        landing.write_text(yaml.safe_dump(landing_page(read_rows(rule.input.scores))), encoding="utf-8")
        command = [sys.executable, "-m", "snakemake", "finished", "--report", str(aside), "--nolock", "--quiet"]
        command += ["--snakefile", str(snakefile()), "--workflow-profile", "none"]
        command += ["--configfile", str(config), "--report-metadata", str(landing), *rule.params.storage]
        done = subprocess.run(command, capture_output=True, text=True)
        print(done.stdout, done.stderr)
        if done.returncode:
            raise ValueError(f"Snakemake could not make the report; its output is in {rule.log[0]}")


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
