"""From published files to a prepared store and the roles of its images."""


rule download_dataset:
    output:
        # Updated, not replaced: it remembers the checksums of files that no publisher gave one for.
        downloads=update("<resources>/raw/{dataset}/downloads.json"),
    log:
        "<logs>/download_dataset/{dataset}.log",
    retries: 2
    # The mirror is read by the script itself: where bytes came from changes nothing, their checksums are fixed.
    params:
        code_version=lambda w: code_version(sources()[w.dataset]),
    script:
        "../workflow_scripts/download_dataset.py"


rule prepare_dataset:
    input:
        downloads="<resources>/raw/{dataset}/downloads.json",
    output:
        store=directory("<resources>/prepared/{dataset}-{variant}"),
    log:
        "<logs>/prepare_dataset/{dataset}-{variant}.log",
    benchmark:
        "<benchmarks>/prepare_dataset/{dataset}-{variant}.jsonl"
    params:
        size=lookup("datasets/{dataset}/size", within=config),
        options=lookup("datasets/{dataset}/options", within=config),
        code_version=lambda w: code_version("jointdiff.data.prepare", sources()[w.dataset]),
    script:
        "../workflow_scripts/prepare_dataset.py"


rule split_dataset:
    input:
        store=store,
    output:
        split=f"{SPLIT}/split-{{seed}}.parquet",
        audit=report(
            f"{SPLIT}/audit-{{seed}}.csv",
            caption="../docs/report/audit.rst",
            category="Is the split clean?",
            labels={"what": "audit", "data set": "{dataset}", "labels": "{labels}", "seed": "{seed}"},
        ),
    log:
        "<logs>/split_dataset/{dataset}-{labels}-{seed}.log",
    params:
        validation=lookup("datasets/{dataset}/validation", within=config),
        test=lookup("datasets/{dataset}/test", within=config),
        code_version=code_version("jointdiff.data.splits"),
    script:
        "../workflow_scripts/split_dataset.py"
