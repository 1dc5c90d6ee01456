"""First stages where methods work in latents, then one training per cell of the grid, all by the same loop."""

# Whom other jobs wait for trains first, so that nothing long is left for the end.
FIRST = [
    name
    for name, variant in experiment.methods.items()
    if variant.generate
    or "counterfactual" in variant.explain
    or name == experiment.evaluation.extractor
    or name in [other.start for other in experiment.methods.values()]
]


rule train_autoencoder:
    input:
        store=store,
        # Its training images are those of every budget: all but those of test and validation.
        split=f"{SPLIT}/split-{{seed}}.parquet".replace("{labels}", "all"),
    output:
        model=directory(f"{FIRST_STAGE}/model"),
        metrics=f"{FIRST_STAGE}/metrics.jsonl",
        run=f"{FIRST_STAGE}/autoencoder.json",
        picture=report(
            f"{FIRST_STAGE}/reconstructions.png",
            caption="../docs/report/reconstructions.rst",
            category=numbered("Are its images useful and safe to share?"),
            labels={"what": "autoencoder", "data set": "{dataset}", "method": "{autoencoder}", "seed": "{seed}"},
        ),
    log:
        "<logs>/train_autoencoder/{dataset}-{autoencoder}-{seed}.log",
    benchmark:
        "<benchmarks>/train_autoencoder/{dataset}-{autoencoder}-{seed}.jsonl"
    priority: 150
    threads: 1
    resources:
        gpu=gpu,
    params:
        first_stage=lambda w: experiment.first_stage(w.dataset, w.autoencoder, int(w.seed)).model_dump(mode="json"),
        code_version=first_stage_code,
    script:
        "../workflow_scripts/train_autoencoder.py"


rule encode_latents:
    input:
        autoencoder=f"{FIRST_STAGE}/model",
        store=store,
    output:
        latents=f"{FIRST_STAGE}/latents.npy",
    log:
        "<logs>/encode_latents/{dataset}-{autoencoder}-{seed}.log",
    benchmark:
        "<benchmarks>/encode_latents/{dataset}-{autoencoder}-{seed}.jsonl"
    priority: 150
    threads: 1
    resources:
        gpu=gpu,
    params:
        batch_size=lookup("evaluation/batch_size", within=config),
        device=lookup("training/device", within=config),
        code_version=code_version("jointdiff.training.first_stage"),
    script:
        "../workflow_scripts/encode_latents.py"


rule try_settings:
    input:
        store=store,
        split=f"{SPLIT}/split-{{seed}}.parquet",
        autoencoder=first_stage("model"),
        latents=first_stage("latents.npy"),
        start=start_model,
        synthetic=drawn_images,
    output:
        trial=f"{TRIAL}.json",
        metrics=f"{TRIAL}.jsonl",
    log:
        f"<logs>/try_settings/{TAG}-{{trial}}.log",
    benchmark:
        f"<benchmarks>/try_settings/{TAG}-{{trial}}.jsonl"
    priority: 120
    threads: 1
    resources:
        gpu=gpu,
    params:
        run=trial_spec,
        spread=lookup("tuning/spread", within=config),
        code_version=trained_code,
    script:
        "../workflow_scripts/try_settings.py"


rule choose_settings:
    input:
        trials=expand(f"{TRIAL}.json", trial=range(experiment.tuning.trials), allow_missing=True),
    output:
        choice=f"{CELL}/tuning.json",
    log:
        f"<logs>/choose_settings/{TAG}.log",
    priority: 120
    localrule: True
    params:
        code_version=code_version("jointdiff.training.tuning"),
    script:
        "../workflow_scripts/choose_settings.py"


rule collect_trials:
    input:
        searched("tuning.json"),
    output:
        table=page("<results>/tuning.csv", "Which classifier with few labels?"),
    log:
        "<logs>/collect_trials.log",
    localrule: True
    params:
        code_version=code_version("jointdiff.report.trials"),
    script:
        "../workflow_scripts/collect_trials.py"


rule train_method:
    input:
        store=store,
        split=f"{SPLIT}/split-{{seed}}.parquet",
        autoencoder=first_stage("model"),
        latents=first_stage("latents.npy"),
        start=start_model,
        synthetic=drawn_images,
        tuning=choice,
        tracking=ancient("<results>/tracking/store.json"),
    output:
        model=directory(f"{CELL}/model"),
        metrics=f"{CELL}/metrics.jsonl",
        run=f"{CELL}/run.json",
    log:
        f"<logs>/train_method/{TAG}.log",
    benchmark:
        f"<benchmarks>/train_method/{TAG}.jsonl"
    wildcard_constraints:
        method=all_but(FIRST),
    priority: 40
    threads: 1
    resources:
        gpu=gpu,
    params:
        run=run_spec,
        code_version=trained_code,
    script:
        "../workflow_scripts/train_method.py"


if FIRST:

    use rule train_method as train_first with:
        wildcard_constraints:
            method="|".join(FIRST),
        priority: 100
