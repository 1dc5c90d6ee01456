"""Train one cell of the grid, from its last checkpoint where a job was interrupted."""

from pathlib import Path

from jointdiff.config import RunSpec
from jointdiff.files import read_json
from jointdiff.jobs import reserve_gpus
from jointdiff.logs import to_rule_log
from jointdiff.tracking import Tracker, read_store
from jointdiff.training.tuning import tuned


def main(rule):
    gpus = reserve_gpus(rule.resources.gpu)
    from jointdiff.processes import launch
    from jointdiff.training.loop import train  # imports torch

    choice = read_json(rule.input.tuning) if rule.input.tuning else None
    run, tuning = tuned(RunSpec.model_validate(rule.params.run), choice)
    launch(
        train,
        run,
        store=rule.input.store,
        split=rule.input.split,
        autoencoder=rule.input.autoencoder or None,
        latents=rule.input.latents or None,
        start=rule.input.start or None,
        synthetic=rule.input.synthetic or None,
        out=Path(rule.output.run).parent,
        state=Path("state") / run.digest,  # no output, so that it survives a failed job
        code_version=rule.params.code_version,
        track=Tracker(read_store(rule.input.tracking), run, code_version=rule.params.code_version),
        tuning=tuning,
        processes=gpus,
    )


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
