"""From predictions, images and explanations to tidy score rows."""


rule score_classification:
    input:
        predictions=f"{CELL}/predictions.parquet",
        run=f"{CELL}/run.json",
    output:
        scores=f"{CELL}/scores/classification.parquet",
    log:
        f"<logs>/score_classification/{TAG}.log",
    benchmark:
        f"<benchmarks>/score_classification/{TAG}.jsonl"
    params:
        bootstrap=lookup("evaluation/bootstrap", within=config),
        confidence=lookup("evaluation/confidence", within=config),
        code_version=code_version("jointdiff.evaluate.classification"),
    script:
        "../workflow_scripts/score_classification.py"


rule score_votes:
    input:
        votes=f"{CELL}/votes.parquet",
        predictions=f"{CELL}/predictions.parquet",
        run=f"{CELL}/run.json",
    output:
        scores=f"{CELL}/scores/votes.parquet",
    log:
        f"<logs>/score_votes/{TAG}.log",
    benchmark:
        f"<benchmarks>/score_votes/{TAG}.jsonl"
    params:
        voting=lookup("voting", within=config),
        bootstrap=lookup("evaluation/bootstrap", within=config),
        confidence=lookup("evaluation/confidence", within=config),
        code_version=code_version("jointdiff.evaluate.votes"),
    script:
        "../workflow_scripts/score_votes.py"


rule score_generation:
    input:
        images=f"{CELL}/generated.npz",
        run=f"{CELL}/run.json",
        extractor=extractor,
        store=store,
        split=f"{SPLIT}/split-{{seed}}.parquet",
        inception=INCEPTION if INCEPTION_WEIGHTS == INCEPTION else [],
    output:
        scores=f"{CELL}/scores/generation.parquet",
        nearest=report(
            f"{CELL}/nearest.png",
            caption="../docs/report/nearest.rst",
            category=numbered("Are its images useful and safe to share?"),
            labels={
                "what": "nearest training images",
                "data set": "{dataset}",
                "labels": "{labels}",
                "method": "{method}",
                "seed": "{seed}",
            },
        ),
    log:
        f"<logs>/score_generation/{TAG}.log",
    benchmark:
        f"<benchmarks>/score_generation/{TAG}.jsonl"
    priority: 20
    threads: 1
    resources:
        gpu=gpu,
    params:
        # A file of the user's own is no input, see own_files.
        inception=lambda w: None if INCEPTION_WEIGHTS == INCEPTION else own_weights(INCEPTION_WEIGHTS),
        batch_size=lookup("evaluation/batch_size", within=config),
        device=lookup("training/device", within=config),
        code_version=code_version("jointdiff.evaluate.generation"),
    script:
        "../workflow_scripts/score_generation.py"


rule score_localisation:
    input:
        explanations=f"{CELL}/explanations.npz",
        run=f"{CELL}/run.json",
        store=store,
    output:
        scores=f"{CELL}/scores/localisation.parquet",
    log:
        f"<logs>/score_localisation/{TAG}.log",
    benchmark:
        f"<benchmarks>/score_localisation/{TAG}.jsonl"
    params:
        bootstrap=lookup("evaluation/bootstrap", within=config),
        confidence=lookup("evaluation/confidence", within=config),
        code_version=code_version("jointdiff.explain.localisation"),
    script:
        "../workflow_scripts/score_localisation.py"


rule score_cost:
    input:
        run=f"{CELL}/run.json",
        predictions=f"{CELL}/predictions.parquet",
        generated=made_if("generate", "generated.npz"),
        explanations=made_if("explain", "explanations.npz"),
    output:
        scores=f"{CELL}/scores/cost.parquet",
    log:
        f"<logs>/score_cost/{TAG}.log",
    params:
        code_version=code_version("jointdiff.evaluate.cost"),
    script:
        "../workflow_scripts/score_cost.py"


rule collect_scores:
    input:
        of_cells("scores/classification.parquet"),
        of_cells("scores/cost.parquet"),
        voted("scores/votes.parquet"),
        generated("scores/generation.parquet"),
        explained("scores/localisation.parquet"),
    output:
        parquet="<results>/scores.parquet",
        csv="<results>/scores.csv",
    log:
        "<logs>/collect_scores.log",
    localrule: True
    params:
        code_version=code_version("jointdiff.evaluate.scores"),
    script:
        "../workflow_scripts/collect_scores.py"
