"""Compile the tables and figures to one PDF, which also checks the LaTeX."""

from jointdiff.logs import to_rule_log
from jointdiff.report.paper import compile_paper


def main(rule):
    compile_paper(rule.input.tables, rule.output.paper)


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
