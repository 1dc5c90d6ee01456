"""Write the tables as LaTeX and CSV."""

from pathlib import Path

from jointdiff.logs import to_rule_log
from jointdiff.report.tables import draw_tables


def main(rule):
    draw_tables(rule.input.scores, Path(rule.output.tex[0]).parent)


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
