"""Draw the labelled, unlabelled, validation and test roles of one (dataset, labels, seed)."""

from jointdiff.data.splits import audit_split, draw_split
from jointdiff.data.store import open_store
from jointdiff.files import atomic_path
from jointdiff.logs import to_rule_log


def main(rule):
    store = open_store(rule.input.store)
    split = draw_split(
        store,
        budget=rule.wildcards.labels,
        seed=int(rule.wildcards.seed),
        validation=rule.params.validation,
        test=rule.params.test,
    )
    with atomic_path(rule.output.split) as aside:
        split.to_parquet(aside)
    with atomic_path(rule.output.audit) as aside:
        audit_split(store, split).to_csv(aside, index=False)


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
