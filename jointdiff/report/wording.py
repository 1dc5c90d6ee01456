"""How tokens of score rows are written for people. An unknown token is written as it is, so nothing need be added."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jointdiff.letters import composed, in_latin

CONTROLS = ("random", "class_prior", "fully_supervised")  # set apart: they say where floor and ceiling are
CONTROL_MAPS = ("random_map", "centre_prior")  # that know nothing of the image
RULES = ("majority", "mean", "race")  # of votes, in the order of tables and legends

_METHODS = {
    "joint": "Joint diffusion",
    "diffusion_classifier": "Diffusion classifier",
    "diffusion_features": "Diffusion features",
    "guided_diffusion": "Guided diffusion",
    "mediffusion": "Mediffusion",
    "fixmatch": "FixMatch",
    "flexmatch": "FlexMatch",
    "freematch": "FreeMatch",
    "softmatch": "SoftMatch",
    "mixmatch": "MixMatch",
    "simclr": "SimCLR",
    "supervised": "Supervised",
    "mean_teacher": "Mean Teacher",
    "pi_model": "Pi-model",
    "pseudo_label": "Pseudo-label",
    "vat": "VAT",
    "uda": "UDA",
    "src_mt": "SRC-MT",
    "acpl": "ACPL",
    "random": "Random scores",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "efficientnet_b0": "EfficientNet-B0",
    "efficientnet_b4": "EfficientNet-B4",
    "vit_s_16": "ViT-S/16",
    "vit_b_16": "ViT-B/16",
    "swin_b": "Swin-B",
}
_DATASETS = {
    "busi": "BUSI",
    "celeba": "CelebA",
    "chestxray14": "ChestX-ray14",
    "chexpert": "CheXpert",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "fashion_mnist": "Fashion-MNIST",
    "isic2018": "ISIC 2018",
    "isic2019": "ISIC 2019",
    "phantom": "Phantom",
    "svhn": "SVHN",
}
_MAPS = {
    "counterfactual": "change",
    "counterfactual_control": "change less control",
    "grad_cam": "Grad-CAM",
    "grad_cam_plus_plus": "Grad-CAM++",
    "integrated_gradients": "Integrated gradients",
    "random_map": "Random map",
    "centre_prior": "Centre prior",
}
_METRICS = {
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "f1": "F1",
    "ece": "ECE",
    "nll": "NLL",
    "aurc": "AURC",
    "fid": "FID",
    "lpips": "LPIPS",
    "iou": "IoU",
    "box_iou": "Box IoU",
    "box_iobb": "Box IoBB",
    "cout": "COUT",
    "pixel_auroc": "Pixel AUROC",
    "pixel_ap": "Pixel AP",
}


def sentence(token: str) -> str:
    """Write a token as words with a capital: "enlarged_heart" becomes "Enlarged heart"."""
    words = re.sub(r"[_\s]+", " ", token).strip()
    return words[:1].upper() + words[1:]


def method_name(token: str) -> str:
    """Name a method variant; a variant such as "joint_noisy" keeps its method's name."""
    base = max((name for name in _METHODS if f"{token}_".startswith(f"{name}_")), key=len, default="")
    if not base:
        return sentence(token)
    rest = token.removeprefix(base).replace("_", " ").strip()
    return f"{_METHODS[base]}, {rest}" if rest else _METHODS[base]


def dataset_name(token: str) -> str:
    """Name a data set; one called "shifted_busi" is BUSI with a shift."""
    if token.startswith("shifted_"):
        return f"{dataset_name(token.removeprefix('shifted_'))}, shifted"
    return _DATASETS.get(token, sentence(token))


def map_name(token: str) -> str:
    """Name a kind of map."""
    return _MAPS.get(token, sentence(token))


def rule_name(rule: str, trials: int) -> str:
    """Name a rule of votes with its number of trials."""
    of = f"{trials} trial{'s' if trials > 1 else ''}"
    return {
        "majority": f"Majority of {of}",
        "mean": f"Mean error of {of}",
        "race": f"Race over at most {of}",
    }.get(rule, f"{sentence(rule)}, {of}")


def change_name(key: str, old: Any, new: Any) -> str:
    """Say what a variant changes: "settings.pooling" from "both" to "max" is "pooling: max instead of both"."""
    words = key.removeprefix("settings.").replace("_", " ").replace(".", " ")
    return f"{words}: {_value(new)} instead of {_value(old)}"


def _value(value: Any) -> str:
    plain = {True: "yes", False: "no", None: "none"}
    if isinstance(value, bool) or value is None:
        return plain[value]
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def metric_name(token: str) -> str:
    """Name a metric."""
    return _METRICS.get(token, sentence(token))


def budget_name(token: str) -> str:
    """Name a label budget: "50" becomes "50 labels", "0.1" becomes "10 % of labels"."""
    if token == "all":  # noqa: S105 - a word of a score row
        return "all labels"
    if token.startswith("list-"):
        return f"list {token.removeprefix('list-').replace('_', ' ')}"
    if "." in token:
        return f"{100 * float(token):g} % of labels"
    return f"{token.removesuffix('-per-class')} per class" if token.endswith("-per-class") else f"{token} labels"


def budget_axis(tokens: Sequence[str]) -> tuple[list[str], str]:
    """Name budgets of one kind by their numbers, with what these count; of several kinds each by its whole name."""
    if all(re.fullmatch(r"\d+-per-class", token) for token in tokens):
        return [token.removesuffix("-per-class") for token in tokens], "labels per class"
    if all(re.fullmatch(r"\d+", token) for token in tokens):
        return list(tokens), "labels"
    if all(re.fullmatch(r"0\.\d+", token) for token in tokens):
        return [f"{100 * float(token):g} %" for token in tokens], "share of labels"
    return [budget_name(token) for token in tokens], ""


_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"\ensuremath{\pm}",
    "×": r"\ensuremath{\times}",
    "≥": r"\ensuremath{\geq}",
    "≤": r"\ensuremath{\leq}",
    "→": r"\ensuremath{\rightarrow}",
    "↑": r"\ensuremath{\uparrow}",
    "↓": r"\ensuremath{\downarrow}",
    "†": r"\dag{}",
    "–": "--",
    "—": "---",
}


_SIGNS = re.escape("".join(sign for sign in _TEX if not sign.isascii()))
_LATIN = "¡-¬®-ĥĨ-ķĹ-ľŁ-ňŊ-ťŨ-žȘ-ț‘-‚“-„•…‰‹›€™"  # what pdflatex's fonts have as it is (T1 and TS1)
_OTHER = rf"[^\s -~{_SIGNS}{_LATIN}]"
_PART = rf"[^\s!-/:-@\[-`{{-~{_SIGNS}]*"  # of a word
_WORDS = re.compile(rf"{_PART}{_OTHER}{_PART}(?:\s+{_PART}{_OTHER}{_PART})*")


def tex(text: str) -> str:
    r"""Escape text for LaTeX; words with letters that pdflatex's fonts lack become \jointdiffname{word}{in Latin}."""
    text, end, parts = composed(text), 0, []
    for found in _WORDS.finditer(text):
        words = " ".join(found[0].split())
        parts += [_escaped(text[end : found.start()]), rf"\jointdiffname{{{words}}}{{{_escaped(in_latin(words))}}}"]
        end = found.end()
    return "".join([*parts, _escaped(text[end:])])


def _escaped(text: str) -> str:
    return "".join(" " if letter.isspace() else _TEX.get(letter, letter) for letter in text)
