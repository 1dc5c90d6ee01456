"""Bind tables, figures and pictures into one PDF, which also checks the LaTeX."""

from pathlib import Path

from jointdiff.logs import to_rule_log
from jointdiff.paths import describe
from jointdiff.report.paper import compile_paper


def main(rule):
    compile_paper(
        Path(rule.input.tables[0]).parent,
        Path(rule.input.figures[0]).parent,
        rule.output.paper,
        scores=rule.input.scores,
        title=rule.params.title,
        grids={
            **{f"Images drawn by {describe(path)}.": Path(path) for path in rule.input.grids},
            **{
                f"Images drawn by {describe(path)}, nearest to training images.": Path(path)
                for path in rule.input.nearest
            },
        },
        strips={f"Explanations by {describe(path)}.": Path(path) for path in rule.input.strips},
    )


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
