"""Score the maps of one cell against masks and boxes."""

from jointdiff.data.store import open_store
from jointdiff.evaluate.scores import write_rows
from jointdiff.explain.localisation import score_explanations
from jointdiff.files import read_json
from jointdiff.logs import to_rule_log


def main(rule):
    rows = score_explanations(
        rule.input.explanations,
        read_json(rule.input.run),
        open_store(rule.input.store).info.labels.names,
        bootstrap=rule.params.bootstrap,
        confidence=rule.params.confidence,
    )
    write_rows(rows, rule.output.scores)


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
