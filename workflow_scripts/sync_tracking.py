"""Push to MLflow whatever it does not show yet; an unreachable server is a warning."""

from pathlib import Path

from jointdiff.files import write_json
from jointdiff.logs import to_rule_log
from jointdiff.tracking import read_store, sync_experiment


def main(rule):
    summary = sync_experiment(Path(rule.input.scores).parent, store=read_store(rule.input.store))
    write_json(rule.output.synchronised, summary)


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
