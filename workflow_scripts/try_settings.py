"""Train one cell with the settings of one trial, of which only numbers are kept."""

from pathlib import Path

from jointdiff.config import RunSpec
from jointdiff.jobs import reserve_gpus
from jointdiff.logs import to_rule_log
from jointdiff.training.tuning import try_settings


def main(rule):
    reserve_gpus(rule.resources.gpu)
    run, trial = RunSpec.model_validate(rule.params.run), int(rule.wildcards.trial)
    try_settings(
        run,
        trial=trial,
        spread=rule.params.spread,
        store=rule.input.store,
        split=rule.input.split,
        autoencoder=rule.input.autoencoder or None,
        latents=rule.input.latents or None,
        start=rule.input.start or None,
        synthetic=rule.input.synthetic or None,
        out=rule.output.trial,
        metrics=rule.output.metrics,
        state=Path("state") / f"{run.digest}-trial-{trial}",  # no output, so that it survives a failed job
        code_version=rule.params.code_version,
    )


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
