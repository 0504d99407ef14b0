"""Reading YAML that may be hostile or wrong, with limits on its expansion.

A few hundred bytes of aliases stand for billions of values, and a document of brackets nests deeper than Python's
stack. So the nodes are counted, with every alias expanded, before any value is constructed.
"""

import reprlib
from collections import Counter
from collections.abc import Hashable
from typing import Any

import yaml

MOST_NODES = 10_000
"""Largest number of values and keys of a document, with every alias expanded, if the caller gives none."""
DEEPEST = 50
_LONGEST_PLAIN = 1_000


class YamlProblem(ValueError):
    """What is wrong with a document, in one line."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """As ``yaml.safe_load``, but a repeated key is an error instead of replacing the first, and values are counted."""

    def __init__(self, text: str, most_nodes: int) -> None:
        super().__init__(text)
        self._most_nodes = self._nodes_left = most_nodes

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._nodes_left -= 1
        if self._nodes_left < 0:
            raise YamlProblem(f"more than {self._most_nodes:,} values")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and counts[key.value] > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"found the key {short(key.value)} more than once; join its parts", key.start_mark
                )
        return super().construct_mapping(node, deep=deep)


def parse_yaml(text: str, *, most_nodes: int = MOST_NODES, is_stream: bool = False) -> Any:
    """The values of one YAML document.

    Args:
        most_nodes: largest number of values and keys, with every alias expanded.
        is_stream: the first of several documents is read, as of recorded messages; otherwise several are an error.

    Raises:
        YamlProblem: not YAML, a repeated key, an invalid value of its type (``2001-99-99``,
            ``!!bool abc``), nesting deeper than 50, more values, or a plain one of more than 1,000 characters.
    """
    try:
        loader = _UniqueKeyLoader(text, most_nodes)
        try:
            if is_stream:
                loader.check_node()  # leaves the start of the stream behind
            node = loader.get_node() if is_stream else loader.get_single_node()
            if node is None:
                return None
            _check_size(node, most_nodes)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        place = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise YamlProblem(f"{_cut(error.problem or error.context or 'no YAML')}{place}") from error
    except RecursionError as error:
        raise YamlProblem(f"nested deeper than {DEEPEST} levels") from error
    except YamlProblem:
        raise
    # PyYAML's constructors do not catch errors of int(), float(), dates and dictionaries.
    except Exception as error:
        raise YamlProblem(f"a value that cannot be read ({type(error).__name__}: {_cut(str(error))})") from error


def short(value: object) -> str:
    """``repr`` of a value, however large, in a few words."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # of whole numbers with thousands of digits
        return f"<{type(value).__name__} too long to show>"


def _check_size(root: yaml.Node, most_nodes: int) -> None:
    sizes: dict[int, int] = {}
    path: set[int] = set()

    def size_of(node: yaml.Node, depth: int) -> int:
        if depth > DEEPEST:
            raise YamlProblem(f"nested deeper than {DEEPEST} levels")
        if id(node) in path:
            raise YamlProblem("an alias that contains itself")
        if id(node) not in sizes:
            path.add(id(node))
            # Numbers of base 60, 1:1:1:..., take quadratic time.
            if isinstance(node, yaml.ScalarNode) and node.style is None and len(node.value) > _LONGEST_PLAIN:
                raise YamlProblem(f"a value of more than {_LONGEST_PLAIN:,} characters without quotes")
            if isinstance(node, yaml.MappingNode):
                inner = [part for pair in node.value for part in pair]
            else:
                inner = list(node.value) if isinstance(node, yaml.SequenceNode) else []
            sizes[id(node)] = 1 + sum(size_of(part, depth + 1) for part in inner)
            path.remove(id(node))
        return sizes[id(node)]

    total = size_of(root, 0)
    if total > most_nodes:
        raise YamlProblem(f"more than {most_nodes:,} values once aliases are written out")


def _cut(text: str, length: int = 200) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[:length]}..."


def _shortener() -> reprlib.Repr:
    shortener = reprlib.Repr()
    shortener.maxlevel = 3
    shortener.maxdict = shortener.maxlist = shortener.maxtuple = shortener.maxset = 6
    shortener.maxstring = shortener.maxother = shortener.maxlong = 100
    return shortener


_SHORT = _shortener()
