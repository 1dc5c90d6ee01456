"""What a trained model makes: probabilities, synthetic images, explanations."""


rule classify_images:
    input:
        model=f"{CELL}/model",
        store=store,
        split=f"{SPLIT}/split-{{seed}}.parquet",
    output:
        predictions=f"{CELL}/predictions.parquet",
    log:
        f"<logs>/classify_images/{TAG}.log",
    benchmark:
        f"<benchmarks>/classify_images/{TAG}.jsonl"
    wildcard_constraints:
        method=all_but(VOTERS),
    priority: 20
    threads: 1
    resources:
        gpu=gpu,
    params:
        batch_size=lookup("evaluation/batch_size", within=config),
        device=lookup("training/device", within=config),
        code_version=code_version("jointdiff.inference.classify"),
    script:
        "../workflow_scripts/classify_images.py"


if VOTERS:

    rule classify_by_votes:
        input:
            model=f"{CELL}/model",
            store=store,
            split=f"{SPLIT}/split-{{seed}}.parquet",
        output:
            predictions=f"{CELL}/predictions.parquet",
            votes=f"{CELL}/votes.parquet",
        log:
            f"<logs>/classify_by_votes/{TAG}.log",
        benchmark:
            f"<benchmarks>/classify_by_votes/{TAG}.jsonl"
        wildcard_constraints:
            method="|".join(VOTERS),
        priority: 60
        threads: 1
        resources:
            gpu=gpu,
        params:
            voting=lookup("voting", within=config),
            batch_size=lookup("evaluation/batch_size", within=config),
            device=lookup("training/device", within=config),
            code_version=code_version("jointdiff.inference.classify"),
        script:
            "../workflow_scripts/classify_by_votes.py"


rule generate_images:
    input:
        model=f"{CELL}/model",
        store=store,
        split=f"{SPLIT}/split-{{seed}}.parquet",
    output:
        images=f"{CELL}/generated.npz",
        grid=report(
            f"{CELL}/generated.png",
            caption="../docs/report/grid.rst",
            category=numbered("Are its images useful and safe to share?"),
            labels={
                "what": "grid",
                "data set": "{dataset}",
                "labels": "{labels}",
                "method": "{method}",
                "seed": "{seed}",
            },
        ),
    log:
        f"<logs>/generate_images/{TAG}.log",
    benchmark:
        f"<benchmarks>/generate_images/{TAG}.jsonl"
    priority: 60
    threads: 1
    resources:
        gpu=gpu,
    params:
        generation=lambda w: experiment.generation_of(w.method).model_dump(mode="json"),
        device=lookup("training/device", within=config),
        code_version=code_version("jointdiff.inference.generate"),
    script:
        "../workflow_scripts/generate_images.py"


rule explain_findings:
    input:
        model=f"{CELL}/model",
        judge=judge,
        store=store,
        split=f"{SPLIT}/split-{{seed}}.parquet",
    output:
        explanations=f"{CELL}/explanations.npz",
        strips=report(
            f"{CELL}/explanations.png",
            caption="../docs/report/strips.rst",
            category=numbered("Does it show the right place?"),
            labels={
                "what": "strips",
                "data set": "{dataset}",
                "labels": "{labels}",
                "method": "{method}",
                "seed": "{seed}",
            },
        ),
    log:
        f"<logs>/explain_findings/{TAG}.log",
    benchmark:
        f"<benchmarks>/explain_findings/{TAG}.jsonl"
    priority: 60
    threads: 1
    resources:
        gpu=gpu,
    params:
        explain=lambda w: config["methods"][w.method]["explain"],
        explanation=lambda w: experiment.explanation_of(w.method).model_dump(mode="json"),
        perceptual=lambda w: own_weights(experiment.evaluation.perceptual),
        device=lookup("training/device", within=config),
        code_version=code_version("jointdiff.inference.explain"),
    script:
        "../workflow_scripts/explain_findings.py"
