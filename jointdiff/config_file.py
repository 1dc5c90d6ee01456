"""A configuration as a file: YAML in which nothing is said twice and no number is another than it looks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from jointdiff.complaints import ConfigError

# YAML 1.1 reads 0100 as 64 and 1:30 as 90.
MISREAD = re.compile(r"[-+]?0[0-7_]+|[-+]?\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?")


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in first:
                where = f"in line {first[key.value]} and in line {line}"
                raise ConfigError(f"the key {key.value!r} stands twice, {where}; keep one of them")
            first[key.value] = line
        return node

    def compose_scalar_node(self, anchor: Any) -> Any:
        node = super().compose_scalar_node(anchor)
        if node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float") and MISREAD.fullmatch(node.value):
            raise ConfigError(
                f"line {node.start_mark.line + 1}: YAML reads {node.value} as {self.construct_object(node)}; "
                "write the number without zeros in front or colons, or a name in quotes"
            )
        return node


def read_config(path: Path | str) -> Any:
    """Return what a configuration file holds.

    Raises:
        ConfigError: it is absent, no valid YAML, names a key twice, or has a number that YAML reads as another.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such configuration file")
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except UnicodeError:
        raise ConfigError(f"{path} is no UTF-8, in which Snakemake reads it; save it as UTF-8") from None
    except RecursionError:
        raise ConfigError(f"{path} is not valid YAML: its brackets are nested too deeply") from None
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        hint = "; write a path with backslashes in single quotes" if "escape" in said else ""
        raise ConfigError(f"{path} is not valid YAML: {said}{hint}") from None
