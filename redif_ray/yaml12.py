"""PyYAML with the numbers and truth values of YAML 1.2; it constructs plain data only."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """A safe loader of YAML 1.2's scalars, where 1e-5 is a number and `off` a text; a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name} appears twice", node.start_mark)
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """A safe dumper that quotes text which `Loader` would read as another type."""


def _scalars_of_yaml_1_2() -> None:
    kept = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"}
    number = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    truth = "true|True|TRUE|false|False|FALSE"
    for handler in (Loader, Dumper):
        handler.yaml_implicit_resolvers = {
            first: [(tag, pattern) for tag, pattern in known if tag in kept]
            for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }
        handler.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^({number})$"), list("-+.0123456789"))
        handler.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(f"^({truth})$"), list("tTfF"))


_scalars_of_yaml_1_2()
