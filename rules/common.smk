"""The experiment that all rules read, and the look-ups that they share."""

import os
import shlex
import shutil
from functools import cache
from pathlib import Path

import snakemake.persistence.file

from jointdiff.config import ConfigError, digest, list_digest, parse_experiment
from jointdiff.config_file import read_config
from jointdiff.data.manifest import check_downloads, content_of, watch
from jointdiff.declared import abilities
from jointdiff.doctor import missing_tex
from jointdiff.jobs import keep_memory, settle
from jointdiff.paths import (
    CELL,
    FIRST_STAGE,
    INCEPTION,
    PUBLISHED,
    SPLIT,
    TAG,
    TRIAL,
    WILDCARDS,
    check_folders,
    inception_weights,
)
from jointdiff.provenance import code_version
from jointdiff.questions import numbered
from jointdiff.registry import describe_source, methods, sources


@cache
def described(dataset):
    """Return a data set's facts; of the user's own data this reads the table, so only steps that need them ask."""
    return describe_source(source_of(dataset), experiment.datasets[dataset].options)


def source_of(dataset):
    """Return the name of the source that reads a data set."""
    return experiment.datasets[dataset].source or dataset


def refusal(error):
    """Return the one message with which a run ends whose configuration or data the user can mend."""
    return WorkflowError(f"The configuration cannot be used.\n{error}")


try:
    check_folders(os.getcwd(), config.get("pathvars"))
    if workflow.is_main_process:  # Snakemake has read them already, where the last of two equal keys wins in silence
        for file in workflow.configfiles:
            read_config(file)
    experiment = parse_experiment(config)
except ValueError as error:
    raise refusal(error) from None
config.update(experiment.model_dump(mode="json"))  # with every default filled in

# Many containers forbid Python to keep bytecode; then each of a hundred jobs would compile torch anew, for seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
PASSED_OVER = settle(os.environ)
keep_memory(os.environ)  # of the jobs: each is a process of its own


def locks(pattern):
    """List Snakemake's locks as its own ``listfiles`` does, but where its folder has braces in its name, too."""
    folder, name = os.path.split(pattern)
    return [(str(path), None) for path in Path(folder).glob("*" + name.rpartition("}")[2])]


snakemake.persistence.file.listfiles = locks

NO_TEX = missing_tex()
# Without these weights FID is a gap; once they are there, exactly the scores that need them are computed again.
INCEPTION_WEIGHTS = inception_weights(
    experiment.evaluation.inception, mirror=os.environ.get("JOINTDIFF_MIRROR") or experiment.mirror
)


pathvars:
    results=f"results/{experiment.name}",
    logs=f"logs/{experiment.name}",
    benchmarks="<results>/benchmarks",


# Where these are in the end, also as a module with paths or a prefix of its own: the report's Snakemake is told.
FOLDERS = {
    name: workflow.pathvars.apply(workflow.modifier.path_modifier.replace_prefix(f"<{name}>"))
    for name in ("results", "resources", "logs", "benchmarks")
}


wildcard_constraints:
    **WILDCARDS,


onstart:
    if PASSED_OVER:
        print(f"{PASSED_OVER}. See `jointdiff doctor`.")
    if NO_TEX:
        print(
            f"TeX is not complete ({NO_TEX} is missing): the tables are made, paper.pdf is not. See `jointdiff doctor`."
        )


onerror:
    print(
        "What is finished can be looked at: uv run jointdiff partial "
        f"{shlex.quote(str(workflow.configfiles[0]))} draws it, with a reason for every gap."
    )


# Data sets of one source, size and options share a store, and any of them tells how to make it.
PREPARED = {name: f"{source_of(name)}-{data.variant}" for name, data in experiment.datasets.items()}
DATASET_OF_PREPARED = {prepared: name for name, prepared in PREPARED.items()}


RESOURCES = workflow.pathvars.apply("<resources>")


@cache
def own_files(prepared):
    """Return the state of the user's own files that a store is made from; none to a job, which knows what it is to do.

    They are no inputs of rules: Snakemake would take one dated ahead for an error, and braces in its name for wildcards.
    """
    inputs = described(DATASET_OF_PREPARED[prepared]).inputs
    if not (inputs and workflow.is_main_process):
        return None
    return watch(inputs, f"{RESOURCES}/prepared/{prepared}.json", name=DATASET_OF_PREPARED[prepared])


@cache
def weights(name):
    """Digest a local file or folder of weights; None of a repository's name, and where nothing is named."""
    path = Path(name or "").expanduser()
    return content_of(path, f"{RESOURCES}/weights/{digest(str(path))}.json") if name and path.exists() else None


if workflow.is_main_process:
    try:
        for prepared, dataset in DATASET_OF_PREPARED.items():
            check_downloads(Path(RESOURCES, "raw", described(dataset).name))
            own_files(prepared)
        for key in ("inception", "perceptual"):
            named = getattr(experiment.evaluation, key)
            if named and named != "download" and not Path(named).is_file():
                raise ConfigError(f"evaluation.{key}: there is no file {named}")
    except ValueError as error:
        raise refusal(error) from None


HAS_GPU = shutil.which("nvidia-smi") is not None


def gpu(wildcards):
    """Return how many GPUs a job asks for: one where this machine has any, or where jobs run on others, which have.

    The profile says how many jobs may hold one; a cluster without GPUs is told so by ``training: {device: cpu}``.
    """
    if experiment.training.device == "cpu":
        return 0
    return int(workflow.non_local_exec or HAS_GPU)


def store(wildcards):
    """Return the prepared store of a data set."""
    return f"<resources>/prepared/{PREPARED[wildcards.dataset]}"


def source_module(dataset):
    """Return the module that reads a data set."""
    return sources()[source_of(dataset)]


def reading(dataset):
    """Return all that says how a data set is read, as plain data."""
    return {"source": source_of(dataset), "options": experiment.datasets[dataset].options}


def dataset_of_raw(wildcards):
    """Return the data set that needs most of a folder of raw files."""
    sharing = [dataset for dataset in experiment.datasets if described(dataset).name == wildcards.raw]
    return max(sharing, key=lambda dataset: len(described(dataset).files))


def downloads(wildcards):
    """Return the record of a store's downloads; the user's own files are watched, see ``own_files``."""
    return f"<resources>/raw/{described(DATASET_OF_PREPARED[wildcards.prepared]).name}/downloads.json"


def extractor(wildcards):
    """Return the model of the independent classifier: another variant, trained on all labels with the same seed."""
    return f"{CELL}/model".format(
        dataset=wildcards.dataset, labels="all", method=experiment.evaluation.extractor, seed=wildcards.seed
    )


def run_spec(wildcards):
    """Return everything that one training depends on, as plain data."""
    return experiment.run(wildcards.dataset, wildcards.labels, wildcards.method, int(wildcards.seed)).model_dump(
        mode="json"
    )


def trial_spec(wildcards):
    """Return everything that a cell's trials depend on but for the settings that they try, as plain data."""
    return experiment.trial(wildcards.dataset, wildcards.labels, wildcards.method, int(wildcards.seed)).model_dump(
        mode="json"
    )


def choice(wildcards):
    """Return what the search for a variant's settings chose, if there is one."""
    return f"{CELL}/tuning.json".format(**wildcards) if experiment.searched(wildcards.method) else []


def first_stage(name):
    """Return a function that names a file of the autoencoder in whose latents a variant works, if it does."""

    def of(wildcards):
        autoencoder = experiment.methods[wildcards.method].autoencoder
        path = f"{FIRST_STAGE}/{name}"
        return (
            path.format(dataset=wildcards.dataset, autoencoder=autoencoder, seed=wildcards.seed) if autoencoder else []
        )

    return of


def start_model(wildcards):
    """Return the trained model from whose network a cell begins, if it does."""
    begun = experiment.start_of(wildcards.labels, wildcards.method)
    if begun is None:
        return []
    labels, method = begun
    return f"{CELL}/model".format(dataset=wildcards.dataset, labels=labels, method=method, seed=wildcards.seed)


# Not lookup(): it walks the whole configuration for each job, which was a seventh of a large grid's planning.
def made_if(key, name):
    """Return a function that names a file of a cell where its variant's entry says that it is made."""
    return lambda wildcards: f"{CELL}/{name}".format(**wildcards) if config["methods"][wildcards.method][key] else []


def drawn_images(wildcards):
    """Return the images that a cell learns from as from labelled ones, if it does."""
    generator = experiment.methods[wildcards.method].synthetic
    return f"{CELL}/generated.npz".format(**{**wildcards, "method": generator}) if generator else []


def first_stages(name):
    """List a file of every autoencoder in whose latents some variant works."""
    used = {variant.autoencoder for variant in experiment.methods.values() if variant.autoencoder}
    return expand(f"{FIRST_STAGE}/{name}", dataset=experiment.datasets, autoencoder=sorted(used), seed=experiment.seeds)


def method_module(wildcards):
    """Return the module of a variant's method."""
    return methods()[experiment.methods[wildcards.method].method or wildcards.method]


def own_weights(name):
    """Return a file of weights and what it holds, so that a change of either counts; None where none is named."""
    return {"path": name, "content": weights(name)} if name else None


def with_weights(code, *named):
    """Digest code together with the local weights that it loads, where any are named: both decide what it gives."""
    loaded = [weights(name) for name in named if weights(name)]
    return digest([code, loaded])[:12] if loaded else code


def trained_code(wildcards):
    """Digest the code and the weights that decide what one training gives."""
    room = "tuning" if experiment.searched(wildcards.method) else "loop"
    code = code_version(f"jointdiff.training.{room}", method_module(wildcards))
    return with_weights(code, experiment.methods[wildcards.method].settings.get("pretrained"))


def first_stage_code(wildcards):
    """Digest the code and the weights that decide what one autoencoder becomes."""
    entry = experiment.autoencoders[wildcards.autoencoder]
    code = code_version("jointdiff.training.first_stage")
    return with_weights(code, entry.pretrained, entry.settings.get("perceptual_weights"))


def all_but(names):
    """Return the pattern of every method's folder but these."""
    return rf"(?!({'|'.join(names)})/){WILDCARDS['method']}" if names else WILDCARDS["method"]


def of_cells(name, *, where=lambda variant: True):
    """List a file of every cell whose variant fits."""
    return [
        f"{CELL}/{name}".format(dataset=dataset, labels=labels, method=method, seed=seed)
        for dataset, labels, method, seed in experiment.cells()
        if where(experiment.methods[method])
    ]


def of_splits(dataset, name):
    """List a file of every split of a data set."""
    drawn = dict.fromkeys((labels, seed) for data, labels, _, seed in experiment.cells() if data == dataset)
    return [f"{SPLIT}/{name}".format(dataset=dataset, labels=labels, seed=seed) for labels, seed in drawn]


# Diffusion classifiers, whose trials are kept.
VOTERS = [name for name, variant in experiment.methods.items() if "vote" in abilities(variant.method or name)]


def searched(name):
    """List a file of every cell whose settings are searched."""
    return [
        f"{CELL}/{name}".format(dataset=dataset, labels=labels, method=method, seed=seed)
        for dataset, labels, method, seed in experiment.cells()
        if experiment.searched(method)
    ]


def voted(name):
    """List a file of every cell that is classified by votes."""
    return [
        f"{CELL}/{name}".format(dataset=dataset, labels=labels, method=method, seed=seed)
        for dataset, labels, method, seed in experiment.cells()
        if method in VOTERS
    ]


def generated(name):
    """List a file of every cell that draws images."""
    return of_cells(name, where=lambda variant: variant.generate)


def explained(name):
    """List a file of every cell that says where a finding is."""
    return of_cells(name, where=lambda variant: bool(variant.explain))


def of_first_seed(paths):
    """Keep the files of the first seed."""
    return [path for path in paths if f"/seed-{experiment.seeds[0]}/" in path]


def judge(wildcards):
    """Return the independent classifier's model where counterfactuals are to be judged by it."""
    return extractor(wildcards) if "counterfactual" in experiment.methods[wildcards.method].explain else []


def storage(wildcards):
    """Return the arguments that tell another Snakemake where files are kept, if not here (see profiles/kubernetes)."""
    arguments = workflow.spawned_job_args_factory
    return shlex.split(
        " ".join([arguments.get_default_storage_provider_args(), *arguments.get_storage_provider_args()])
    )


def page(path, question):
    """Show a file in the report under the question that it answers, with the caption that bears its name."""
    stem = Path(path).stem
    return report(path, caption=f"../docs/report/{stem}.rst", category=numbered(question), labels={"what": stem})


def final_files(wildcards):
    """List what a complete run leaves behind, its report and what MLflow holds apart."""
    return [
        "<results>/scores.parquet",
        *([] if NO_TEX else ["<results>/paper.pdf"]),
        *rules.draw_tables.output,
        *rules.draw_figures.output,
        *(["<results>/tuning.csv"] if searched("tuning.json") else []),
        *first_stages("reconstructions.png"),
        *generated("generated.png"),
        *generated("nearest.png"),
        *explained("explanations.png"),
        *[f"<results>/{dataset}/audit.{kind}" for dataset in experiment.datasets for kind in ("html", "png")],
    ]
