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
    declared = {}
    for name in methods():
        method = load_method(name)
        extra = {"x-can": abilities_of(name), "x-tunable": list(method.tunable)}
        declared[name] = method.Settings.model_json_schema() | extra
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


def abilities_of(name: str) -> list[str]:
    """List what a method can do, from the contracts that its class fulfils.

    Raises:
        ConfigError: there is no method of this name.
    """
    contracts: dict[str, type] = {"generate": Generator, "counterfactual": Explainer, "vote": Voter}
    contracts |= {ability: saliency.needs for ability, saliency in SALIENCY.items()}
    method = load_method(name)
    can = [ability for ability, contract in contracts.items() if issubclass(method, contract)]
    return [*can, *["latents"] * method.works_in_latents, *["label_free"] * (not method.encoder_sees_labels)]
