"""Compare the synthetic images of one cell with real ones."""

from jointdiff.evaluate.scores import write_rows
from jointdiff.files import read_json
from jointdiff.jobs import reserve_gpus
from jointdiff.logs import to_rule_log


def main(rule):
    reserve_gpus(rule.resources.gpu)
    from jointdiff.evaluate.generation import score_generated  # imports torch

    rows = score_generated(
        rule.input.images,
        run=read_json(rule.input.run),
        extractor=rule.input.extractor,
        store=rule.input.store,
        split=rule.input.split,
        picture=rule.output.nearest,
        inception=rule.input.inception or (rule.params.inception or {}).get("path"),
        batch_size=rule.params.batch_size,
        device=rule.params.device,
    )
    write_rows(rows, rule.output.scores)


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
