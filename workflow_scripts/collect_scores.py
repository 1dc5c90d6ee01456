"""Join the score rows of all cells into one table."""

from jointdiff.evaluate.scores import collect
from jointdiff.logs import to_rule_log


def main(rule):
    collect(rule.input, rule.output.parquet, rule.output.csv)


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
