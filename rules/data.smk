"""From published files to a prepared store and the roles of its images."""


# One part by default, since its threads use the whole machine; the profile of a cluster says more.
scattergather:
    prepare=1,


rule download_dataset:
    output:
        # Updated, not replaced: it remembers the checksums of files that no publisher gave one for.
        downloads=update("<resources>/raw/{raw}/downloads.json"),
    log:
        "<logs>/download_dataset/{raw}.log",
    retries: 2
    localrule: True  # the nodes of many clusters have no way out
    # The mirror is read by the script itself: where bytes came from changes nothing, their checksums are fixed.
    params:
        reading=lambda w: reading(dataset_of_raw(w)),
        code_version=lambda w: code_version(source_module(dataset_of_raw(w))),
    script:
        "../workflow_scripts/download_dataset.py"


rule download_inception:
    output:
        weights=INCEPTION,
    log:
        "<logs>/download_inception.log",
    retries: 2
    localrule: True  # the nodes of many clusters have no way out
    script:
        "../workflow_scripts/download_inception.py"


rule prepare_part:
    input:
        downloads,
    output:
        part=temp(directory("<resources>/prepared/{prepared}.parts/{scatteritem}")),
    log:
        "<logs>/prepare_part/{prepared}-{scatteritem}.log",
    benchmark:
        "<benchmarks>/prepare_part/{prepared}-{scatteritem}.jsonl"
    threads: 16
    params:
        own=lambda w: own_files(w.prepared),
        reading=lambda w: reading(DATASET_OF_PREPARED[w.prepared]),
        size=lambda w: experiment.datasets[DATASET_OF_PREPARED[w.prepared]].size,
        code_version=lambda w: code_version("jointdiff.data.prepare", source_module(DATASET_OF_PREPARED[w.prepared])),
    script:
        "../workflow_scripts/prepare_part.py"


rule join_parts:
    input:
        downloads,
        parts=gather.prepare("<resources>/prepared/{{prepared}}.parts/{scatteritem}"),
    output:
        store=directory("<resources>/prepared/{prepared}"),
    log:
        "<logs>/join_parts/{prepared}.log",
    benchmark:
        "<benchmarks>/join_parts/{prepared}.jsonl"
    params:
        own=lambda w: own_files(w.prepared),
        reading=lambda w: reading(DATASET_OF_PREPARED[w.prepared]),
        size=lambda w: experiment.datasets[DATASET_OF_PREPARED[w.prepared]].size,
        code_version=lambda w: code_version("jointdiff.data.prepare", source_module(DATASET_OF_PREPARED[w.prepared])),
    script:
        "../workflow_scripts/join_parts.py"


rule split_dataset:
    input:
        store=store,
    output:
        split=f"{SPLIT}/split-{{seed}}.parquet",
    log:
        "<logs>/split_dataset/{dataset}-{labels}-{seed}.log",
    priority: 180  # no long training should wait for one
    params:
        validation=lambda w: config["datasets"][w.dataset]["validation"],
        test=lambda w: config["datasets"][w.dataset]["test"],
        test_images=lambda w: config["datasets"][w.dataset]["test_images"],
        folds=lambda w: config["datasets"][w.dataset]["folds"],
        lists=lambda w: {
            name: {"path": path, "content": list_digest(path)}
            for name, path in experiment.datasets[w.dataset].lists.items()
        },
        code_version=code_version("jointdiff.data.splits"),
    script:
        "../workflow_scripts/split_dataset.py"
