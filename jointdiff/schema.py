"""The JSON Schema of a configuration, for editors and for checks without torch; building it imports all methods."""

from __future__ import annotations

from typing import Any

from jointdiff.config import Experiment
from jointdiff.explain.saliency import SALIENCY
from jointdiff.method import Explainer, Generator, Voter
from jointdiff.nets.autoencoder import KLAutoencoder
from jointdiff.registry import load_method, methods

__all__ = ["config_schema"]


def config_schema() -> dict[str, Any]:
    """Build the JSON Schema of a configuration, with the settings of every built-in method."""
    contracts: dict[str, type] = {"generate": Generator, "counterfactual": Explainer, "vote": Voter}
    contracts |= {name: saliency.needs for name, saliency in SALIENCY.items()}
    declared = {}
    for name in methods():
        method = load_method(name)
        can = [ability for ability, contract in contracts.items() if issubclass(method, contract)]
        if method.works_in_latents:
            can.append("latents")
        if not method.encoder_sees_labels:
            can.append("label_free")
        declared[name] = method.Settings.model_json_schema() | {"x-can": can, "x-tunable": list(method.tunable)}
    schema = Experiment.model_json_schema()
    schema["properties"]["pathvars"] = {"type": "object", "description": "Folders that Snakemake puts elsewhere"}
    schema["$defs"]["methods"] = declared
    schema["$defs"]["autoencoder"] = KLAutoencoder.Settings.model_json_schema()
    for entry in ("DataSet", "MethodVariant", "Autoencoder", "Tuning"):
        properties = schema["$defs"][entry]["properties"]
        for section in {"training", "generation", "explanation"} & set(properties):
            what = f"What differs from the experiment's {section}"
            properties[section] = {**schema["$defs"][section.capitalize()], "description": what}
    schema["$defs"]["Autoencoder"]["properties"]["settings"] = {"$ref": "#/$defs/autoencoder"}
    # A variant's settings are those of the method it names, or of the method whose name it bears.
    variant = schema["$defs"]["MethodVariant"]
    variant["allOf"] = [
        {
            "if": {"properties": {"method": {"const": name}}, "required": ["method"]},
            "then": {"properties": {"settings": {"$ref": f"#/$defs/methods/{name}"}}},
        }
        for name in declared
    ]
    schema["properties"]["methods"]["properties"] = {
        name: {
            "$ref": "#/$defs/MethodVariant",
            "if": {"not": {"required": ["method"]}},
            "then": {"properties": {"settings": {"$ref": f"#/$defs/methods/{name}"}}},
        }
        for name in declared
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Experiment", **schema}
