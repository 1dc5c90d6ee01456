"""Write the tables as LaTeX, CSV, Markdown and HTML."""

from pathlib import Path

from jointdiff.logs import to_rule_log
from jointdiff.paths import PUBLISHED
from jointdiff.report.tables import draw_tables


def main(rule):
    draw_tables(
        rule.input.scores,
        rule.input.predictions,
        Path(rule.output[0]).parent,
        published=PUBLISHED,
        methods=rule.params.methods,
        changes=rule.params.changes,
        draws=rule.params.draws,
        alpha=rule.params.alpha,
    )


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
