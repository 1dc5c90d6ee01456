"""One training per cell of the grid, all by the same loop."""

# Whom other jobs wait for trains first, so that nothing long is left for the end.
FIRST = [
    name
    for name, variant in experiment.methods.items()
    if variant.generate or "counterfactual" in variant.explain or name == experiment.evaluation.extractor
]


rule train_method:
    input:
        store=store,
        split=f"{SPLIT}/split-{{seed}}.parquet",
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
        method=(rf"(?!({'|'.join(FIRST)})/){WILDCARDS['method']}" if FIRST else WILDCARDS["method"]),
    priority: 40
    threads: 1
    resources:
        gpu=GPU,
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
