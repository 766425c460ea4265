"""YAML 1.2, read within bounds: plain data with the numbers and truth values of its core schema, and nothing else."""

from __future__ import annotations

import re
from typing import Any

import yaml

MOST_CHARACTERS = 2**18
MOST_DEPTH = 50  # lists and mappings inside each other
MOST_NODES = 20_000  # values after every alias is replaced by what it stands for
MOST_DIGITS = 300  # of a whole number; the largest float has 309
CORE = "tag:yaml.org,2002:"


class YamlError(ValueError):
    """A text is not valid YAML, or exceeds a bound; the message is one line and repeats no value."""


class _Loader(yaml.SafeLoader):
    """A loader of the core schema, where 1e-5 is a number and `off` a text; a repeated key is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._size: dict[yaml.Node, int] = {}  # of the nodes that are complete, with all that lies below them
        self._depth: dict[yaml.Node, int] = {}
        self._above = self._made = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node as PyYAML does, within the bounds."""
        alias, mark = self.check_event(yaml.AliasEvent), self.peek_event().start_mark
        self._above += 1
        self._made += 1
        if self._made > MOST_NODES:
            raise _problem(f"more than {MOST_NODES} values", mark)
        if self._above > MOST_DEPTH:
            raise _problem(f"lists and mappings lie more than {MOST_DEPTH} deep", mark)
        node = super().compose_node(parent, index)
        self._above -= 1
        if alias and node not in self._size:
            raise _problem("an alias stands for a value that holds the alias itself", mark)
        if node is not None and not alias:
            parts = _below(node)
            self._size[node] = 1 + sum(self._size[part] for part in parts)
            self._depth[node] = 1 + max((self._depth[part] for part in parts), default=0)
            if self._size[node] > MOST_NODES:
                raise _problem(f"more than {MOST_NODES} values, each alias replaced by what it stands for", mark)
            if self._depth[node] > MOST_DEPTH:
                raise _problem(f"lists and mappings lie more than {MOST_DEPTH} deep", mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                raise _problem("a key is a list or a mapping; expected a text", key.start_mark)
            if key.value in names:
                raise _problem(f"the key {key.value} appears twice", node.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        """Return a whole number, decimal, or octal or hexadecimal after 0o and 0x."""
        text = str(self.construct_scalar(node))
        if len(text) > MOST_DIGITS:
            raise _problem(f"a whole number of {len(text)} digits; expected at most {MOST_DIGITS}", node.start_mark)
        return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)


class Dumper(yaml.SafeDumper):
    """A safe dumper that quotes text which a reader of YAML 1.1 or 1.2 would take for another type."""


def _below(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _problem(text: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=mark)


def _set_core_schema() -> None:
    whole = r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"
    number = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    _Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag in (f"{CORE}null", f"{CORE}merge")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Dumper.yaml_implicit_resolvers = {
        first: list(known) for first, known in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }
    for handler in (_Loader, Dumper):
        handler.add_implicit_resolver(f"{CORE}int", re.compile(f"^(?:{whole})$"), list("-+0123456789"))
        handler.add_implicit_resolver(f"{CORE}float", re.compile(f"^(?:{number})$"), list("-+.0123456789"))
        handler.add_implicit_resolver(f"{CORE}bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
    known = yaml.SafeLoader.yaml_constructors
    kinds = ("null", "bool", "float", "str", "seq", "map")
    _Loader.yaml_constructors = {tag: known[tag] for tag in (*(f"{CORE}{kind}" for kind in kinds), None)}
    _Loader.add_constructor(f"{CORE}int", _Loader.construct_int)


_set_core_schema()


def load(text: str) -> Any:
    """Return the value of a YAML document: dicts, lists, texts, numbers, truth values and None. Raises YamlError."""
    return _read(text, _Loader.get_single_data)


def compose(text: str) -> yaml.Node | None:
    """Return the nodes of a YAML document, which know their places. Raises YamlError."""
    return _read(text, _Loader.get_single_node)


def scalar(text: str) -> Any:
    """Return the value of a text as a plain scalar: a number, a truth value, None, or the text. Raises YamlError."""
    loader = _Loader("")
    node = yaml.ScalarNode(loader.resolve(yaml.ScalarNode, text, (True, False)), text)
    node.start_mark = yaml.Mark("", 0, 0, 0, None, 0)
    return text if node.tag == f"{CORE}merge" else _said(lambda: loader.construct_object(node))


def _read(text: str, read: Any) -> Any:
    if len(text) > MOST_CHARACTERS:
        raise YamlError(f"{len(text)} characters; expected at most {MOST_CHARACTERS}")

    def reading() -> Any:
        loader = _Loader(text)
        return read(loader)

    return _said(reading)


def _said(read: Any) -> Any:
    """Return `read()`. PyYAML's own message would repeat the line, which may hold a secret."""
    try:
        return read()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None or mark.name == "" else f"line {mark.line + 1}: "
        raise YamlError(f"{where}{error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        raise YamlError(f"the character {error.character!r} at {error.position}: {error.reason}") from None
    except (ValueError, KeyError) as error:  # of an explicit tag, such as !!int many
        raise YamlError(f"a value does not suit its tag ({type(error).__name__})") from None
