"""Join the trials of all searches into one table."""

from jointdiff.logs import to_rule_log
from jointdiff.report.trials import collect_trials


def main(rule):
    collect_trials(rule.input, rule.output.table)


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
