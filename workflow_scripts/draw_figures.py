"""Draw the figures."""

from pathlib import Path

from jointdiff.logs import to_rule_log
from jointdiff.report.figures import draw_figures


def main(rule):
    draw_figures(rule.input.scores, Path(rule.output.png[0]).parent)


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
