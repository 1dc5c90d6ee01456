"""Draw the labelled, unlabelled, validation and test roles of one (dataset, labels, seed)."""

from jointdiff.data.splits import split_dataset
from jointdiff.logs import to_rule_log


def main(rule):
    split_dataset(
        rule.input.store,
        out=rule.output.split,
        budget=rule.wildcards.labels,
        seed=int(rule.wildcards.seed),
        validation=rule.params.validation,
        test=rule.params.test,
        test_images=rule.params.test_images,
        folds=rule.params.folds,
        lists={name: listed["path"] for name, listed in rule.params.lists.items()},
    )


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
