"""Push to MLflow whatever it does not show yet; an unreachable server is a warning."""

from pathlib import Path

from jointdiff.files import read_json, write_json
from jointdiff.logs import to_rule_log
from jointdiff.tracking import sync_experiment


def main(rule):
    summary = sync_experiment(Path(rule.input.scores).parent, store=read_json(rule.input.store))
    write_json(rule.output.synchronised, summary)


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
