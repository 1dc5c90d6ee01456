"""Train or fetch the autoencoder of one data set and seed, and measure its latents."""

from pathlib import Path

from jointdiff.config import FirstStage
from jointdiff.jobs import reserve_gpus
from jointdiff.logs import to_rule_log


def main(rule):
    reserve_gpus(rule.resources.gpu)
    from jointdiff.training.first_stage import make_first_stage  # imports torch

    spec = FirstStage.model_validate(rule.params.first_stage)
    make_first_stage(
        spec,
        store=rule.input.store,
        split=rule.input.split,
        out=Path(rule.output.run).parent,
        state=Path("state")
        / f"{rule.wildcards.dataset}-{spec.name}-{spec.digest}",  # no output: it survives a failed job
        code_version=rule.params.code_version,
    )


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
