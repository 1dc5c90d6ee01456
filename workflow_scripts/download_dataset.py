"""Fetch a data set's published files, from the mirror where it has them."""

from pathlib import Path

from jointdiff.data.download import download, mirror_from
from jointdiff.logs import to_rule_log
from jointdiff.registry import describe_source


def main(rule):
    source = describe_source(rule.params.reading["source"], rule.params.reading["options"])
    download(source, Path(rule.output.downloads).parent, mirror=mirror_from(rule.config["mirror"]))


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
