"""Bring one part of a data set's images, labels and regions to one size."""

from jointdiff.data.prepare import Part, prepare_part
from jointdiff.logs import to_rule_log
from jointdiff.registry import load_source


def main(rule):
    prepare_part(
        load_source(rule.params.reading["source"]),
        rule.input[0].removesuffix("/downloads.json"),
        rule.output.part,
        size=rule.params.size,
        options=rule.params.reading["options"],
        part=Part.parse(rule.wildcards.scatteritem),
        threads=rule.threads,
        code_version=rule.params.code_version,
    )


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
