"""Let a diffusion classifier vote on every validation and test image."""

from jointdiff.config import Voting
from jointdiff.jobs import reserve_gpus
from jointdiff.logs import to_rule_log


def main(rule):
    gpus = reserve_gpus(rule.resources.gpu)
    from jointdiff.inference.classify import classify_by_votes  # imports torch
    from jointdiff.processes import launch

    launch(
        classify_by_votes,
        rule.input.model,
        store=rule.input.store,
        split=rule.input.split,
        out=rule.output.predictions,
        votes=rule.output.votes,
        seed=int(rule.wildcards.seed),
        voting=Voting.model_validate(rule.params.voting),
        batch_size=rule.params.batch_size,
        device=rule.params.device,
        processes=gpus,
    )


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
