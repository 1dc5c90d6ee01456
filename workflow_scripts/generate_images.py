"""Draw synthetic images from a trained model, with a grid to look at."""

from jointdiff.config import Generation
from jointdiff.jobs import reserve_gpus
from jointdiff.logs import to_rule_log


def main(rule):
    gpus = reserve_gpus(rule.resources.gpu)
    from jointdiff.inference.generate import generate  # imports torch
    from jointdiff.processes import launch

    launch(
        generate,
        rule.input.model,
        out=rule.output.images,
        picture=rule.output.grid,
        seed=int(rule.wildcards.seed),
        store=rule.input.store,
        split=rule.input.split,
        settings=Generation.model_validate(rule.params.generation),
        device=rule.params.device,
        processes=gpus,
    )


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
