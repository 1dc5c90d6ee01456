"""Score the test predictions of one cell."""

from jointdiff.evaluate.classification import score_predictions
from jointdiff.evaluate.scores import write_rows
from jointdiff.files import read_json
from jointdiff.logs import to_rule_log


def main(rule):
    rows = score_predictions(
        rule.input.predictions,
        read_json(rule.input.run),
        bootstrap=rule.params.bootstrap,
        confidence=rule.params.confidence,
    )
    write_rows(rows, rule.output.scores)


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
