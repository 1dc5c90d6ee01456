"""Show where a trained model sees each finding, and what its images look like without it."""

from jointdiff.config import Explanation
from jointdiff.jobs import reserve_gpus
from jointdiff.logs import to_rule_log


def main(rule):
    gpus = reserve_gpus(rule.resources.gpu)
    from jointdiff.inference.explain import explain  # imports torch
    from jointdiff.processes import launch

    launch(
        explain,
        rule.input.model,
        store=rule.input.store,
        split=rule.input.split,
        out=rule.output.explanations,
        picture=rule.output.strips,
        explainers=rule.params.explain,
        seed=int(rule.wildcards.seed),
        settings=Explanation.model_validate(rule.params.explanation),
        judge=rule.input.judge or None,
        perceptual=(rule.params.perceptual or {}).get("path"),
        device=rule.params.device,
        processes=gpus,
    )


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
