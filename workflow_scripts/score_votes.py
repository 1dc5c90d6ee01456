"""Score the trials of one diffusion classifier under every rule and number of trials."""

from jointdiff.evaluate.scores import write_rows
from jointdiff.evaluate.votes import score_votes
from jointdiff.files import read_json
from jointdiff.logs import to_rule_log


def main(rule):
    rows = score_votes(
        rule.input.votes,
        rule.input.predictions,
        read_json(rule.input.run),
        error=rule.params.voting["error"],
        block=rule.params.voting["block"],
        bootstrap=rule.params.bootstrap,
        confidence=rule.params.confidence,
    )
    write_rows(rows, rule.output.scores)


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
