"""Bring a data set's images, labels and regions into one memory-mapped store."""

from pathlib import Path

from jointdiff.data.prepare import prepare
from jointdiff.logs import to_rule_log


def main(rule):
    prepare(
        rule.wildcards.dataset,
        Path(rule.input.downloads).parent,
        rule.output.store,
        size=rule.params.size,
        options=rule.params.options,
    )


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
