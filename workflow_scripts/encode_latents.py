"""Encode every image of a data set once, so that no training step has to."""

from jointdiff.jobs import reserve_gpus
from jointdiff.logs import to_rule_log


def main(rule):
    reserve_gpus(rule.resources.gpu)
    from jointdiff.training.first_stage import encode_latents  # imports torch

    encode_latents(
        rule.input.autoencoder,
        store=rule.input.store,
        out=rule.output.latents,
        batch_size=rule.params.batch_size,
        device=rule.params.device,
    )


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
