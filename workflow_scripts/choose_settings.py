"""Choose among the trials of one cell by their validation."""

from jointdiff.logs import to_rule_log
from jointdiff.training.tuning import choose_settings


def main(rule):
    choose_settings(rule.input.trials, rule.output.choice)


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
