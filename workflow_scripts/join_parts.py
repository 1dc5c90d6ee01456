"""Bring the parts of a data set together as one memory-mapped store."""

from jointdiff.data.prepare import join_parts
from jointdiff.logs import to_rule_log
from jointdiff.registry import load_source


def main(rule):
    join_parts(
        load_source(rule.params.reading["source"]),
        rule.input.parts,
        rule.output.store,
        raw=rule.input[0].removesuffix("/downloads.json"),
        size=rule.params.size,
        options=rule.params.reading["options"],
        record=f"{rule.output.store}.json",
    )


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
