"""The source of a function of a notebook or a script, with all that it uses, as the text of a module.

A function in a module that Python can import needs none of this. One of `__main__` exists in this process alone, and
workers, a resumed run and `redif evaluate` are other processes. Its source is what they can share without running a
pickle.
"""

from __future__ import annotations

import ast
import inspect
import symtable
import sys
import textwrap
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

HEAD = '"""A function given to redif-ray from Python, and what it uses."""\n\nfrom __future__ import annotations\n'


def importable(value: Any) -> bool:
    """Tell whether other processes find the function or class `value` by the name of its module."""
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    if module is None or module.__name__ == "__main__" or getattr(module, "__spec__", None) is None:
        return False
    return getattr(module, getattr(value, "__qualname__", ""), None) is value


def module_text(function: Callable[..., Any]) -> str:
    """Return the source of a module that defines `function` and what it uses of its own module.

    Modules and importable objects become imports, numbers, texts and containers of them are written out, and other
    functions of the same notebook or script come along. Raises ValueError, with what to do, for anything else.
    """
    module = _Module()
    module.define(function)
    return "\n".join([HEAD, *sorted(module.imports), "\n", "\n\n\n".join(module.definitions)]) + "\n"


class _Module:
    """The imports and the definitions of a module that is put together, each after those that it uses."""

    def __init__(self) -> None:
        self.imports: set[str] = set()
        self.definitions: list[str] = []
        self.names: set[str] = set()

    def define(self, function: Callable[..., Any]) -> None:
        """Add a function and all that it uses."""
        inner = inspect.unwrap(function)
        if not isinstance(inner, FunctionType) or inner.__name__ == "<lambda>":
            raise ValueError(f"{function!r} has no definition of its own; expected a function made by `def`")
        name = inner.__name__
        if inner.__code__.co_freevars:
            raise ValueError(
                f"{name} uses {', '.join(inner.__code__.co_freevars)} of the function around it; define {name} at the "
                "top of the notebook or script, or in a file of its own"
            )
        source = _source(inner)
        self.names.add(name)  # before what it uses, because functions may call each other
        for used in _globals(source):
            if used in inner.__globals__ and used not in self.names:
                self.add(used, inner.__globals__[used], name)
        self.definitions.append(source)

    def add(self, name: str, value: Any, user: str) -> None:
        """Add the global `name`. user: the function that uses it."""
        self.names.add(name)
        if isinstance(value, ModuleType):
            self.imports.add(f"import {value.__name__}" + ("" if name == value.__name__ else f" as {name}"))
        elif importable(value):
            own = value.__name__
            self.imports.add(f"from {value.__module__} import {own}" + ("" if name == own else f" as {name}"))
        elif callable(value) and isinstance(inspect.unwrap(value), FunctionType) and value.__name__ == name:
            self.define(value)
        elif _is_literal(value):
            self.definitions.append(f"{name} = {value!r}")
        else:
            raise ValueError(
                f"{user} uses {name}, a {type(value).__name__} of this process, which workers do not have; make it "
                f"inside of {user} or of a function that {user} calls (functools.cache makes it once), or put {user} "
                "into a file"
            )


def _is_literal(value: Any) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, TypeError):
        return False


def _source(function: FunctionType) -> str:
    """Return the source of a function as it was defined. Raises ValueError where Python does not have it any more."""
    name = function.__name__
    advice = "define it in a cell of a notebook or in a file"
    try:
        source = textwrap.dedent(inspect.getsource(function)).rstrip()
        code = compile(source, function.__code__.co_filename, "exec")
    except (OSError, TypeError, SyntaxError) as error:
        raise ValueError(f"the source of {name} cannot be had ({error}); {advice}") from None
    if _traits(function.__code__) not in map(_traits, _codes(code)):
        raise ValueError(f"the source of {name} has changed since it was defined; run its cell or file again")
    return source


def _traits(code: CodeType) -> tuple[Any, ...]:
    """Return what tells apart two versions of a function; their instructions depend on the imports above, too."""
    return code.co_name, code.co_names, code.co_varnames, [c for c in code.co_consts if not isinstance(c, CodeType)]


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _globals(source: str) -> list[str]:
    """List the names that a definition takes from its module, in alphabetical order, without those of annotations."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
    found: set[str] = set()

    def visit(table: symtable.SymbolTable) -> None:
        top = table.get_type() == "module"
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (symbol.is_global() or top) and not (top and symbol.is_assigned()):
                found.add(symbol.get_name())
        for child in table.get_children():
            visit(child)

    visit(symtable.symtable(ast.unparse(tree), "<function>", "exec"))
    return sorted(found)
