"""Let a trained model judge every validation and test image."""

from jointdiff.jobs import reserve_gpus
from jointdiff.logs import to_rule_log


def main(rule):
    gpus = reserve_gpus(rule.resources.gpu)
    from jointdiff.inference.classify import classify  # imports torch
    from jointdiff.processes import launch

    launch(
        classify,
        rule.input.model,
        store=rule.input.store,
        split=rule.input.split,
        out=rule.output.predictions,
        batch_size=rule.params.batch_size,
        device=rule.params.device,
        processes=gpus,
    )


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
