"""No private member is reached from outside the module that defines it.

What counts as reaching one:

    from module import _name      import package._module
    module._name                  whatever else this module has by that name
    thing._name                   unless a class of this module defines `_name`
    self._name, cls._name         unless this class, or a base of it in this module, defines `_name`
    getattr(thing, "_name")       and what else takes a name as a string: setattr, monkeypatch.setattr, ...

A subclass in another module than its base class is outside: what it needs of the base is not private.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.support.house_rules.source import Breach, SourceFile

NAMED_TUPLE = {"_asdict", "_field_defaults", "_fields", "_make", "_replace"}
"""Public members of every named tuple, which have an underscore lest they clash with its fields."""
ALLOWED = {
    "library._name": "ctypes documents it as the name of a loaded library",
    "os._exit": "os documents it, as what ends a process at once",
    "torch.ops.mkldnn._is_mkldnn_bf16_supported": "torch has no public way to ask",
    "torch.ops.mkldnn._linear_pointwise": "torch has no public way to use a packed weight",
    "torch.ops.mkldnn._reorder_linear_weight": "torch has no public way to pack a weight",
}
"""Private members of third parties that may be reached, each with the reason."""
BY_STRING = {"getattr", "setattr", "hasattr", "delattr"}
"""Functions and methods whose strings are names of attributes."""


def is_private(name: str) -> bool:
    """Whether a name is private: one leading underscore or two, and not `__special__` or `_`."""
    return (
        name.startswith("_") and name.strip("_") != "" and not (name.startswith("__") and name.endswith("__"))
    )


@dataclass(frozen=True)
class ClassInfo:
    """What a class defines itself, and its bases by the names that its module gives them."""

    bases: tuple[str, ...] = ()
    members: frozenset[str] = frozenset()


@dataclass
class ModuleInfo:
    """What the rule needs to know of a module.

    Attributes:
        classes: by name; a nested class has its own name only, classes of one name count as one.
        imports: the name here → where it comes from, `module` or `module.name`.
    """

    name: str
    classes: dict[str, ClassInfo] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)

    @property
    def members(self) -> frozenset[str]:
        """Private members of any class of the module."""
        return frozenset().union(*(each.members for each in self.classes.values()))


def check(files: Sequence[SourceFile]) -> Iterator[Breach]:
    """Every place that reaches a private member of another module."""
    python = [file for file in files if file.is_python]
    modules = {file.module: describe(file) for file in python}
    for file in python:
        visitor = _Visitor(file, modules)
        visitor.visit(file.tree)
        yield from visitor.breaches


def describe(file: SourceFile) -> ModuleInfo:
    """The classes and imports of one module."""
    info = ModuleInfo(file.module)
    for node in ast.walk(file.tree):
        if isinstance(node, ast.ClassDef):
            bases = tuple(ast.unparse(base).partition("[")[0] for base in node.bases)
            earlier = info.classes.get(node.name, ClassInfo())
            members = earlier.members.union(_members(node))
            info.classes[node.name] = ClassInfo(earlier.bases + bases, members)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                info.imports[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                info.imports[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return info


def _members(node: ast.ClassDef) -> Iterator[str]:
    """The private members that a class defines: in its body, or by an assignment to `self` or `cls`."""
    for statement in node.body:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
    for inner in ast.walk(node):
        match inner:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                yield name


class _Visitor(ast.NodeVisitor):
    """Goes through one module; `breaches` is what it found."""

    def __init__(self, file: SourceFile, modules: Mapping[str, ModuleInfo]) -> None:
        self.breaches: list[Breach] = []
        self._file = file
        self._modules = modules
        self._module = modules[file.module]
        self._own = self._module.members
        self._classes: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._classes.append(node.name)
        self.generic_visit(node)
        self._classes.pop()

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._check_path(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self._check_path(node, f"{node.module}.{alias.name}")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if is_private(node.attr) and not self._may_reach(node):
            self._report(node, ast.unparse(node))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in BY_STRING:
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    self._check_string(node, argument.value)
        self.generic_visit(node)

    def _check_string(self, node: ast.Call, text: str) -> None:
        name = text.rpartition(".")[2]
        path = f"{ast.unparse(node.args[0])}.{name}"
        if is_private(name) and name not in self._own and path not in ALLOWED:
            self._report(node, ast.unparse(node))

    def _may_reach(self, node: ast.Attribute) -> bool:
        if node.attr in NAMED_TUPLE or ast.unparse(node) in ALLOWED:
            return True
        match node.value:
            case ast.Name(id="self" | "cls") | ast.Call(func=ast.Name(id="super")) if self._classes:
                defining = set(self._defining(self._module, self._classes[-1], node.attr))
                return defining == {self._module.name}
        return (
            node.attr in self._own and self._path(self._module, ast.unparse(node.value)) not in self._modules
        )

    def _defining(self, module: ModuleInfo, class_name: str, member: str) -> Iterator[str]:
        """The modules in which the class or one of its bases defines `member`."""
        info = module.classes.get(class_name)
        if info is None:
            return
        if member in info.members:
            yield module.name
        for base in info.bases:
            found = self._find_class(module, base)
            if found and found != (module, class_name):
                yield from self._defining(*found, member)

    def _find_class(self, module: ModuleInfo, base: str) -> tuple[ModuleInfo, str] | None:
        if base in module.classes:
            return module, base
        owner, _, name = self._path(module, base).rpartition(".")
        return (self._modules[owner], name) if owner in self._modules else None

    def _path(self, module: ModuleInfo, expression: str) -> str:
        """`expression`, a name with or without dots, as `module` got it from elsewhere."""
        first, dot, rest = expression.partition(".")
        return module.imports.get(first, first) + dot + rest

    def _check_path(self, node: ast.stmt, path: str) -> None:
        if any(map(is_private, path.split("."))):
            self._report(node, f"import of {path}")

    def _report(self, node: ast.stmt | ast.expr, what: str) -> None:
        message = f"{what}: a private member of another module; allowed is what this module defines"
        self.breaches.append(Breach(self._file.path, node.lineno, message))
