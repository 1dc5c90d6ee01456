"""Draw the figures for a paper and for a screen."""

from pathlib import Path

from jointdiff.logs import to_rule_log
from jointdiff.report.figures import draw_figures


def main(rule):
    draw_figures(
        rule.input.scores,
        rule.input.predictions,
        rule.input.metrics,
        Path(rule.output[0]).parent,
        methods=rule.params.methods,
        alpha=rule.params.alpha,
    )


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
