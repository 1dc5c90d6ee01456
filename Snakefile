from snakemake.utils import min_version

min_version("9.19")


# `--configfile` replaces this default instead of being merged into it: an experiment is one file.
if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


report: "docs/report/workflow.rst"


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/tracking.smk"
include: "rules/train.smk"
include: "rules/generate.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"


rule all:
    default_target: True
    input:
        "<results>/report.html",
        "<results>/tracking/synchronised.json",
        final_files,
