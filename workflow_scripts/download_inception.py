"""Fetch clean-fid's Inception weights, from the mirror where it has them."""

from pathlib import Path

from jointdiff.data.download import download, mirror_from
from jointdiff.logs import to_rule_log


def main(rule):
    from jointdiff.evaluate.inception import WEIGHTS  # imports torch

    download(WEIGHTS, Path(rule.output.weights).parent, mirror=mirror_from(rule.config["mirror"]))


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
