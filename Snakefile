from pathlib import Path

from snakemake.utils import min_version

min_version("9.19")

DEFAULT = "config/config.yaml"
OWN = workflow.modifier.is_main_snakefile() and not Path(DEFAULT).is_file()  # read from beside this Snakefile


# `--configfile` replaces this default instead of being merged into it: an experiment is one file.
if not workflow.overwrite_configfiles:

    configfile: workflow.source_path(DEFAULT) if OWN else DEFAULT


include: "rules/common.smk"


# The first rule is what is made by default, here and in a workflow that has this one as a module.
rule all:
    input:
        "<results>/report.html",
        "<results>/tracking/synchronised.json",
        final_files,


report: "docs/report/workflow.rst"


include: "rules/data.smk"
include: "rules/tracking.smk"
include: "rules/train.smk"
include: "rules/generate.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"
