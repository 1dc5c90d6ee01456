"""The experiment as typed, closed data: what to run, on what, how often. Light: imports no torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache, reduce
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from jointdiff.addresses import holds_password
from jointdiff.complaints import ConfigError, check_extent, check_known, explain
from jointdiff.declared import abilities, check_settings, declared, declared_methods, tunable
from jointdiff.lending import check_lending, check_no_label_is_handed_on
from jointdiff.values import as_name

__all__ = ["ConfigError", "Experiment", "RunSpec", "load_experiment", "parse_experiment"]


class Closed(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_word_is_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `no` and the like where no truth value is wanted: pydantic takes it for 0."""
        plain = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, bool)]
        if plain and cls.model_fields[str(info.field_name)].annotation is not bool:
            read = str(plain[0]).lower()
            raise ValueError(f"YAML reads a value here as {read}; write a number, or a name in quotes")
        return value


def _budget_token(value: Any) -> str:
    token = re.sub(r"\s+", "-", str(value).strip())
    if re.fullmatch(r"all|[1-9]\d*(-per-class)?|0\.\d*[1-9]\d*|list-[A-Za-z0-9_]+", token):
        return token
    raise ValueError(
        f"{value!r} is no label budget: use a count (200), '25 per class', a fraction (0.1), 'all', or 'list NAME' "
        "with a file of that NAME under `lists`"
    )


def _without_secret(variable: str) -> AfterValidator:
    """Refuse an address with a password or token: reports hold the configuration, and it is handed on."""

    def check(address: str | None) -> str | None:
        if address and "://" in address and holds_password(address):
            raise ValueError(
                f"this address holds a password or a token, and reports show the configuration; name it in the "
                f"variable {variable} instead, which nothing shows"
            )
        return address

    return AfterValidator(check)


def _distinct(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError(f"{values} names something twice")
    return values


def _some_budgets(value: Any) -> Any:
    if value in ("grid", "all"):
        return value
    if isinstance(value, list) and value:
        return _distinct([_budget_token(budget) for budget in value])
    raise ValueError(f"{value!r} is none of grid, all, or a list of label budgets, as in [200]")


# A label budget as it stands in file names: "200", "25-per-class", "0.1", "all" or "list-published".
BUDGET_SCHEMA = {"type": ["string", "number"]}
Budget = Annotated[str, BeforeValidator(_budget_token), WithJsonSchema(BUDGET_SCHEMA)]
Distinct = AfterValidator(_distinct)
# The budgets of a variant: the data set's, all labels at once, or some of the data set's.
Budgets = Annotated[
    str | list[str],
    BeforeValidator(_some_budgets),
    WithJsonSchema({"anyOf": [{"enum": ["grid", "all"]}, {"type": "array", "items": BUDGET_SCHEMA, "minItems": 1}]}),
]
Map = Literal[
    "counterfactual",
    "grad_cam",
    "grad_cam_plus_plus",
    "integrated_gradients",
    "occlusion",
    "random_map",
    "centre_prior",
]


def _option(value: Any) -> Any:
    if isinstance(value, list):
        return [as_name(item) for item in value]
    return value if isinstance(value, bool | int | float) else as_name(value)


Option = Annotated[bool | int | float | str | list[str], BeforeValidator(_option)]
Options = dict[str, Option]  # what a data set's read() accepts


class Training(Closed):
    """How long and how every method trains, unless its own entry says otherwise."""

    steps: int = Field(500, ge=0)  # optimiser steps
    # GFLOP of a whole training, forward and backward, which decide the steps: rivals at equal compute. Of an entry and
    # of what it overrides, the nearest one that says steps or compute is followed.
    compute: float | None = Field(None, gt=0)
    batch_size: int = Field(32, ge=1)  # labelled images per step; a method adds unlabelled ones in its own ratio
    # Equal parts of a step's batch, done in turn in one process (less memory) or at once in several (the GPUs that a
    # profile gives a training). The step is that of the whole batch, but each part has its own noise, views and batch
    # statistics; so this is part of an experiment, and how many processes do it is not.
    micro_batches: int = Field(1, ge=1)
    unlabelled_share: float = Field(1.0, ge=0, le=1)  # of the unlabelled images; 0 leaves the labelled ones alone
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the device has matrix units for it
    device: Literal["auto", "cpu", "cuda"] = "auto"
    validate_every: int = Field(100, ge=1)  # steps between validations; the best one is kept
    validation_images: int | None = Field(None, ge=1)  # at most, drawn at random: for methods that are slow to ask
    # Images that a model which can draws at each validation, to be looked at (in MLflow, with its step). On a CPU 16 of
    # 32 pixels take 2 seconds, at each of 8 validations a seventh of the default joint training.
    previews: int = Field(0, ge=0)
    log_every: int = Field(20, ge=1)  # steps between lines of metrics.jsonl
    checkpoint_seconds: float = Field(60.0, ge=0)  # seconds between resumable checkpoints
    clip_norm: float = Field(1.0, gt=0)  # gradients are scaled down to this norm

    @model_validator(mode="after")
    def _equal_parts(self) -> Training:
        if self.batch_size % self.micro_batches:
            raise ConfigError(
                f"training.micro_batches: a batch of {self.batch_size} (training.batch_size) cannot be cut into "
                f"{self.micro_batches} equal parts; use a divisor"
            )
        return self


class DataSet(Closed):
    """One data set of the grid."""

    source: str | None = None  # module in jointdiff.data.sources; the data set's own name by default
    size: int = Field(ge=8)  # side of the prepared images in pixels
    labels: Annotated[list[Budget], Distinct] = Field(min_length=1)  # label budgets, validation included
    validation: float = Field(0.2, gt=0, lt=1)  # share of the labelled budget kept for choices (checkpoint, thresholds)
    test: float = Field(0.25, gt=0, lt=1)  # share of the groups held out where the publisher names no test split
    test_images: int | None = Field(None, ge=1)  # about so many test images, where methods are slow to ask
    folds: int | None = Field(None, ge=2)  # k: each seed holds out another k-th of all groups, whatever was published
    lists: dict[str, str] = Field(default_factory=dict)  # files of sample ids, one a line, for budgets "list NAME"
    options: Options = Field(default_factory=dict)  # what the source's read() accepts
    training: dict[str, Any] = Field(default_factory=dict)  # overrides of `training` for this set

    @property
    def variant(self) -> str:
        """Name the prepared store: the size, and a digest of the reader's options where any is set."""
        return f"{self.size}-{digest(self.options)[:6]}" if self.options else str(self.size)


class Autoencoder(Closed):
    """A first stage: trained once per data set and seed, on training images without their labels, or a loaded one."""

    pretrained: str | None = None  # folder or hub id of an AutoencoderKL in diffusers' format, instead of training
    settings: dict[str, Any] = Field(default_factory=dict)  # of jointdiff.nets.autoencoder
    training: dict[str, Any] = Field(default_factory=dict)  # overrides of `training`


class MethodVariant(Closed):
    """One named competitor: a method and what it changes."""

    method: str | None = None  # module in jointdiff.methods or baselines; the variant's own name by default
    base: str | None = None  # another variant, whose entry this one takes over but for what it says itself
    autoencoder: str | None = None  # key of `autoencoders`: diffusion happens in its latents
    start: str | None = None  # another variant, from whose trained network this one begins
    synthetic: str | None = None  # another variant, whose drawn images this one learns from as from labelled ones
    real_labels: bool = True  # false: only those images are labelled, which tells what they are worth by themselves
    # "grid": a cell for each of the data set's budgets, or for those listed; "all": one with every training label.
    labels: Budgets = "grid"
    tune: bool = True  # whether its settings are searched where `tuning` asks for trials
    generate: bool = False  # draw synthetic images from it
    # Maps of where a finding is, scored against masks and boxes.
    explain: Annotated[list[Map], Distinct] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)  # the method's own Settings
    training: dict[str, Any] = Field(default_factory=dict)  # overrides of `training` for this method
    generation: dict[str, Any] = Field(default_factory=dict)  # overrides of `generation`
    explanation: dict[str, Any] = Field(default_factory=dict)  # overrides of `explanation`

    def budgets(self, grid: list[Budget]) -> list[Budget]:
        """Return those of a data set's budgets with which this variant is trained."""
        if isinstance(self.labels, str):
            return ["all"] if self.labels == "all" else grid
        return [budget for budget in grid if budget in self.labels]


class Generation(Closed):
    """How synthetic images are drawn."""

    images: int = Field(128, ge=1)  # per cell
    steps: int = Field(25, ge=1, le=1000)  # of the sampler; each asks the network once, or more often with guidance
    sampler: Literal["ddim", "dpm++"] = "ddim"
    guidance: float = Field(1.0, ge=0)  # strength of the labels; 0 samples unconditionally
    labels: Literal["each", "pseudo"] = "each"  # each label in turn, or what the model says of unlabelled images
    batch_size: int = Field(64, ge=1)


class Explanation(Closed):
    """How findings are removed, or put in, and where the change is looked for."""

    images_per_finding: int = Field(32, ge=1)  # test images with the finding and a region, at most
    healthy_per_finding: int = Field(0, ge=0)  # test images without the finding, into which it is put; 0: none
    noise_level: int = Field(120, ge=1, le=1000)  # T_c: step of 1000 to which an image is noised
    steps: int = Field(2, ge=1)  # reverse steps from there
    guidance: float = Field(2.0, ge=0)  # strength of the edit: s of a gradient, w of classifier-free guidance
    # What guides: the classifier's gradient on z_t, on the encoder's maps, or what a conditional decoder is told.
    guide: Literal["image", "representation", "label"] = "image"
    start: Literal["noise", "inversion"] = "noise"  # added noise, or DDIM run backwards from the image
    noises: int = Field(5, ge=1)  # noise draws averaged per image
    proximity: float = Field(0.0, ge=0)  # weight of the distance to the image beside the classifier's gradient
    keep: float = Field(1.0, gt=0, le=1)  # share of the pixels that an edit may change, the most changed ones
    batch_size: int = Field(32, ge=1)


class Voting(Closed):
    """How a diffusion classifier decides: in trials, each of one noise and one noise level for all classes."""

    trials: int = Field(501, ge=1)  # N, at most
    rule: Literal["majority", "mean"] = "majority"  # of the trials' winners, or the least mean error
    stop: bool = False  # race: hold no trial of classes that are beaten; otherwise every error is kept, for every rule
    error: float = Field(0.05, ge=0, lt=1)  # of a race: chance to miss what beats each other in most trials
    block: int = Field(8, ge=1)  # trials between two looks at what is decided
    validation_images: int = Field(200, ge=1)  # at most, drawn at random: thresholds are chosen on them
    precision: Literal["auto", "fp32", "bf16"] = "fp32"  # half the bits are faster and turn a few close votes
    batch_size: int = Field(512, ge=1)  # network calls at once; changes no answer

    @model_validator(mode="after")
    def _one_rule(self) -> Voting:
        if self.stop and self.rule == "mean":
            raise ConfigError("voting.rule: a race (`stop: true`) decides by duels; leave rule at majority")
        return self


class Evaluation(Closed):
    """How scores are computed."""

    bootstrap: int = Field(1000, ge=1)  # draws over groups behind every interval
    confidence: float = Field(0.95, gt=0, lt=1)
    extractor: str = "fully_supervised"  # variant that judges counterfactuals and gives the Frechet distance's features
    # clean-fid's Inception weights: a path, or "download" from the mirror or their publisher; by default the mirror's.
    inception: str | None = None
    perceptual: str | None = None  # file of torchvision's vgg16, alexnet or squeezenet1_1, for the LPIPS of edits
    batch_size: int = Field(256, ge=1)


class Tuning(Closed):
    """A search among settings of every method, as many trials for each, judged on a cell's own validation images."""

    trials: int = Field(1, ge=1)  # trainings of each cell before its own, the first with the entry's settings; 1: none
    spread: float = Field(4.0, gt=1)  # a trial multiplies each setting that can be tuned by 1 / spread to spread
    training: dict[str, Any] = Field(default_factory=dict)  # overrides of a method's `training` for its trials


class Tracking(Closed):
    """Where runs are shown. MLFLOW_TRACKING_URI overrides the address."""

    enabled: bool = True
    # Default: an SQLite file beside the results.
    uri: Annotated[str | None, _without_secret("MLFLOW_TRACKING_URI")] = None


class Experiment(Closed):
    """A whole benchmark: a grid of data sets, budgets, methods and seeds."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    seeds: Annotated[list[int], Distinct] = Field(min_length=1)
    # Folder or URL asked before the publishers; JOINTDIFF_MIRROR overrides it.
    mirror: Annotated[str | None, _without_secret("JOINTDIFF_MIRROR")] = None
    datasets: dict[str, DataSet] = Field(min_length=1)
    methods: dict[str, MethodVariant] = Field(min_length=1)
    autoencoders: dict[str, Autoencoder] = Field(default_factory=dict)
    training: Training = Field(default_factory=Training)
    generation: Generation = Field(default_factory=Generation)
    explanation: Explanation = Field(default_factory=Explanation)
    voting: Voting = Field(default_factory=Voting)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    tuning: Tuning = Field(default_factory=Tuning)
    tracking: Tracking = Field(default_factory=Tracking)

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, content: Any) -> Any:
        """Give every variant with a ``base`` what that says and the variant does not."""
        methods = content.get("methods") if isinstance(content, dict) else None
        if not isinstance(methods, dict):
            return content
        return {**content, "methods": {name: _inherited(name, methods) for name in methods}}

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        entries: dict[str, Mapping[str, DataSet | MethodVariant | Autoencoder]] = {
            "datasets": self.datasets,
            "methods": self.methods,
            "autoencoders": self.autoencoders,
        }
        sections: dict[str, Closed] = {
            "training": self.training,
            "generation": self.generation,
            "explanation": self.explanation,
        }
        for kind, named in entries.items():
            for name, entry in named.items():
                if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]{0,63}", name):
                    raise ConfigError(f"{kind}: {name!r} must be letters, digits and underscores, at most 64 of them")
                for section, general in sections.items():
                    _override(general, getattr(entry, section, {}), f"{kind}.{name}.{section}.")
        _override(self.training, self.tuning.training, "tuning.training.")
        for name, data in self.datasets.items():
            for budget in data.labels:
                if budget.startswith("list-"):
                    listed = budget.removeprefix("list-")
                    check_known(
                        listed, data.lists, f"datasets.{name}.labels: {listed!r} is no key of datasets.{name}.lists"
                    )
        for name, variant in self.methods.items():
            how = self.explanation_of(name)
            if how.steps > how.noise_level:
                key = f"methods.{name}.explanation" if variant.explanation else "explanation"
                raise ConfigError(
                    f"{key}.steps: {how.steps} reverse steps do not fit below noise_level {how.noise_level}; "
                    "lower the one or raise the other"
                )
            for budget in variant.labels if isinstance(variant.labels, list) else []:
                offered = [other for data in self.datasets.values() for other in data.labels]
                check_known(budget, offered, f"methods.{name}.labels: {budget!r} is a budget of no data set")
            if variant.autoencoder is not None:
                where = f"methods.{name}.autoencoder: {variant.autoencoder!r} is no key of autoencoders"
                check_known(variant.autoencoder, self.autoencoders, where)
            check_lending(name, methods=self.methods, datasets=self.datasets)
        extractor = self.methods.get(self.evaluation.extractor)
        if self.needs_extractor and (extractor is None or extractor.labels != "all"):
            raise ConfigError(
                f"evaluation.extractor: {self.evaluation.extractor!r} must name one of methods with `labels: all`: "
                "it judges counterfactuals, and its features give the Frechet distance"
            )
        return self

    def start_of(self, labels: str, method: str) -> tuple[str, str] | None:
        """Return the (labels, variant) of the cell, of the same data set and seed, from which a cell begins."""
        start = self.methods[method].start
        if start is None:
            return None
        return ("all" if self.methods[start].labels == "all" else labels), start

    @property
    def needs_extractor(self) -> bool:
        """Say whether any cell is scored with the features or the judgement of another classifier."""
        return any(m.generate or "counterfactual" in m.explain for m in self.methods.values())

    def generation_of(self, method: str) -> Generation:
        """Return how a variant's images are drawn."""
        return Generation.model_validate({**self.generation.model_dump(), **self.methods[method].generation})

    def explanation_of(self, method: str) -> Explanation:
        """Return how a variant's findings are removed."""
        return Explanation.model_validate({**self.explanation.model_dump(), **self.methods[method].explanation})

    def changes(self) -> dict[str, dict[str, Any]]:
        """Say of each variant with a ``base`` what it changes: {"base": name, "changes": {"settings.x": [old, new]}}.

        A setting that only one of the two names is "default" in the other, since its value is the method's own affair.
        Whether images are drawn and findings explained is left out: that changes what is measured, not the model.
        """
        found = {}
        for name, variant in self.methods.items():
            if variant.base is not None:
                old, new = self._resolved(variant.base), self._resolved(name)
                keys = (key for key in {**old, **new} if old.get(key, "default") != new.get(key, "default"))
                changed = {key: [old.get(key, "default"), new.get(key, "default")] for key in keys}
                found[name] = {"base": variant.base, "changes": changed}
        return found

    def _resolved(self, method: str) -> dict[str, Any]:
        """Return everything that decides what a variant is, by dotted key."""
        variant = self.methods[method]
        sections = {
            "settings": variant.settings,
            "training": _trained(self.training, variant.training).model_dump(),
            "generation": self.generation_of(method).model_dump(),
            "explanation": self.explanation_of(method).model_dump(),
        }
        return {
            "method": variant.method or method,
            "autoencoder": variant.autoencoder,
            "start": variant.start,
            "synthetic": variant.synthetic,
            "real_labels": variant.real_labels,
            "labels": variant.labels,
            "tune": variant.tune,
            **{f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()},
        }

    def cells(self) -> list[tuple[str, str, str, int]]:
        """List (dataset, labels, method, seed) for every training of the grid."""
        return [
            (dataset, labels, method, seed)
            for dataset, data in self.datasets.items()
            for method, variant in self.methods.items()
            for labels in variant.budgets(data.labels)
            for seed in self.seeds
        ]

    def run(self, dataset: str, labels: str, method: str, seed: int) -> RunSpec:
        """Return everything one training depends on, overrides resolved."""
        data, variant = self.datasets[dataset], self.methods[method]
        first, begun = variant.autoencoder, self.start_of(labels, method)
        return RunSpec(
            experiment=self.name,
            dataset=dataset,
            source=data.source,
            size=data.size,
            options=data.options,
            validation=data.validation,
            test=data.test,
            folds=data.folds,
            labels=labels,
            listed=list_digest(data.lists[labels.removeprefix("list-")]) if labels.startswith("list-") else None,
            variant=method,
            method=variant.method or method,
            autoencoder=self.first_stage(dataset, first, seed) if first is not None else None,
            start=self.run(dataset, *begun, seed).digest if begun is not None else None,
            synthetic=self._drawn(dataset, labels, variant.synthetic, seed) if variant.synthetic is not None else None,
            real_labels=variant.real_labels,
            seed=seed,
            settings=variant.settings,
            training=_trained(self.training, data.training, variant.training),
        )

    def _drawn(self, dataset: str, labels: str, generator: str, seed: int) -> str:
        """Identify the images that a generator draws."""
        how = self.generation_of(generator).model_dump(mode="json", exclude={"batch_size"})
        return digest([self.run(dataset, labels, generator, seed).digest, how])

    def searched(self, method: str) -> bool:
        """Say whether a variant's settings are searched."""
        variant = self.methods[method]
        return self.tuning.trials > 1 and variant.tune and tunable(variant.method or method) != ()

    def trial(self, dataset: str, labels: str, method: str, seed: int) -> RunSpec:
        """Return what the trials of a cell train, but for the settings that they try."""
        run = self.run(dataset, labels, method, seed)
        return run.model_copy(update={"training": _trained(run.training, self.tuning.training)})

    def first_stage(self, dataset: str, autoencoder: str, seed: int) -> FirstStage:
        """Return everything one autoencoder depends on, but for the images."""
        entry = self.autoencoders[autoencoder]
        return FirstStage(
            name=autoencoder,
            seed=seed,
            pretrained=entry.pretrained,
            settings=entry.settings,
            training=_trained(self.training, self.datasets[dataset].training, entry.training),
        )


class FirstStage(Closed):
    """One autoencoder: everything its training depends on, but for the images."""

    name: str
    seed: int
    pretrained: str | None
    settings: dict[str, Any]
    training: Training

    @property
    def digest(self) -> str:
        """Identify what is trained."""
        return digest(self.model_dump(mode="json", exclude={"name": True, "training": QUIET}))


# The device, previews and how often we log or save change neither the weights nor the scores beyond rounding.
QUIET = {"device", "previews", "log_every", "checkpoint_seconds"}


class RunSpec(Closed):
    """One cell of the grid: everything one training depends on."""

    experiment: str
    dataset: str
    source: str | None = None
    size: int
    options: Options = Field(default_factory=dict)
    validation: float = 0.2
    test: float = 0.25
    folds: int | None = None
    labels: str
    listed: str | None = None  # digest of the file that a budget "list NAME" stands for
    variant: str
    method: str
    autoencoder: FirstStage | None = None  # in whose latents the method works
    start: str | None = None  # digest of the run from whose network this one begins
    synthetic: str | None = None  # digest of the drawn images that count as labelled ones
    real_labels: bool = True  # whether the labelled images themselves do
    seed: int
    settings: dict[str, Any]
    training: Training

    @property
    def digest(self) -> str:
        """Identify what is trained: 16 hex digits over every field that changes the weights."""
        quiet: dict[str, Any] = {"training": QUIET, "experiment": True, "autoencoder": {"training": QUIET}}
        return digest(self.model_dump(mode="json", exclude=quiet))


def _inherited(name: str, methods: Mapping[str, Any], heirs: tuple[str, ...] = ()) -> Any:
    """Return the entry of a variant with what its bases say."""
    entry = methods[name]
    if not isinstance(entry, dict) or entry.get("base") is None:
        return entry
    base = entry["base"]
    check_known(base, methods, f"methods.{name}.base: {base!r} is no key of methods")
    if base in (*heirs, name):
        raise ConfigError(f"methods.{name}.base: {' -> '.join([*heirs, name, base])} is a circle")
    inherited = _inherited(base, methods, (*heirs, name))
    if not isinstance(inherited, dict):
        return entry
    merged = {"method": base, **inherited, **entry}
    for section in ("settings", "training", "generation", "explanation"):
        if isinstance(inherited.get(section), dict) and isinstance(entry.get(section), dict):
            merged[section] = _joined(inherited[section], entry[section])
    return merged


def _joined(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section with what is nearer; ``steps`` there stand instead of a more general ``compute``."""
    kept = {key: value for key, value in section.items() if key != "compute" or "steps" not in changes}
    return {**kept, **changes}


def _trained(general: Training, *overrides: Mapping[str, Any]) -> Training:
    """Return how something is trained after overrides, the nearest last."""
    return Training.model_validate(reduce(_joined, overrides, general.model_dump()))


def _override(general: Closed, changes: Mapping[str, Any], prefix: str) -> None:
    try:
        type(general).model_validate({**general.model_dump(), **changes})
    except ValidationError as error:
        raise ConfigError(explain(error, type(general), prefix)) from None


def digest(value: Any) -> str:
    """Hash plain data (dicts in any order) to 16 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


@cache
def list_digest(path: str) -> str:
    """Digest the content of a file of sample ids."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def load_experiment(path: Path | str) -> Experiment:
    """Read and check a configuration file.

    Raises:
        ConfigError: the file is absent, is no YAML mapping, names a key twice, or holds a mistake.
    """
    from jointdiff.config_file import read_config

    content = read_config(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values (name, seeds, datasets, methods), found {content!r}")
    try:
        return parse_experiment(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse_experiment(config: Mapping[str, Any]) -> Experiment:
    """Check a configuration and return it typed.

    ``pathvars`` is left to Snakemake, which moves whole folders (results, resources, logs) with it.

    Raises:
        ConfigError: an unknown key, a value of a wrong type or range, an unknown data set, method or setting.
    """
    check_extent(config)
    try:
        experiment = Experiment.model_validate({key: value for key, value in config.items() if key != "pathvars"})
    except ValidationError as error:
        raise ConfigError(explain(error, Experiment)) from None
    _check_names(experiment)
    return experiment


def _check_names(experiment: Experiment) -> None:
    """Check what the types cannot: names of data sets and methods, their options, settings and abilities."""
    from jointdiff.data.source import fit_options
    from jointdiff.registry import load_source, methods, sources

    for name, data in experiment.datasets.items():
        source, key = data.source or name, f"datasets.{name}"
        check_known(source, sources(), f"{key}{'.source' if data.source else ''}: unknown data set {source!r}")
        for option in data.options:
            known = load_source(source).SOURCE.options
            check_known(option, known, f"{key}.options.{option}: unknown key {option!r}")
        data.options.update(fit_options(load_source(source).SOURCE, data.options, where=f"{key}.options"))
        for listed, path in data.lists.items():
            if not Path(path).is_file():
                raise ConfigError(f"{key}.lists.{listed}: there is no file {path}; it should hold one sample id a line")
    for name, first in experiment.autoencoders.items():
        check_settings(first.settings, declared()["autoencoder"], f"autoencoders.{name}.settings.")
    for name, variant in experiment.methods.items():
        check_no_label_is_handed_on(name, methods=experiment.methods)
        method, key = variant.method or name, f"methods.{name}"
        check_known(method, methods(), f"{key}{'.method' if variant.method else ''}: unknown method {method!r}")
        schema = declared_methods().get(method)
        if schema is None:
            continue  # a method of the user's own: its settings are checked when it is built
        check_settings(variant.settings, schema, f"{key}.settings.")
        if variant.autoencoder is not None and "latents" not in schema["x-can"]:
            raise ConfigError(f"{key}.autoencoder: {method} works on images; remove this key")
        for ability in [*(["generate"] if variant.generate else []), *variant.explain]:
            if ability not in ("random_map", "centre_prior", *schema["x-can"]):  # these two need no model
                verb = "draw images" if ability == "generate" else f"explain by {ability}"
                able = [other for other in declared_methods() if ability in abilities(other)]
                where = "generate" if ability == "generate" else "explain"
                raise ConfigError(f"{key}.{where}: {method} cannot {verb}; these methods can: {', '.join(able)}")
