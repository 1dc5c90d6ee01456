"""Initialise the MLflow store once, before several jobs write to it."""

from pathlib import Path

from jointdiff.logs import to_rule_log
from jointdiff.tracking import create_store, write_store


def main(rule):
    default = Path(rule.output.store).parents[2]  # one store beside the results of all experiments
    write_store(rule.output.store, create_store(rule.params.experiment, beside=default, **rule.params.tracking))


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
