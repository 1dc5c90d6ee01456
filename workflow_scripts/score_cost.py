"""Say what one cell cost to train and to use."""

from jointdiff.evaluate.cost import score_cost
from jointdiff.evaluate.scores import write_rows
from jointdiff.files import read_json
from jointdiff.logs import to_rule_log


def main(rule):
    rows = score_cost(
        read_json(rule.input.run),
        predictions=rule.input.predictions,
        generated=rule.input.generated or None,
        explanations=rule.input.explanations or None,
    )
    write_rows(rows, rule.output.scores)


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
