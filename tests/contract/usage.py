"""Finds every use of TensorRT in our source and compares it with a description of its bindings, see bindings.py.

Types are followed through assignments, calls and the names of parameters (PARAMETERS); what is of a known class must
exist there, and calls must fit one of its signatures.
"""

import ast
from pathlib import Path

PARAMETERS = {  # what a function's parameter, or an attribute of self, of this name is
    "trt": "module", "self._trt": "module", "builder": "Builder", "network": "INetworkDefinition",
    "config": "IBuilderConfig", "engine": "ICudaEngine", "self._engine": "ICudaEngine", "context": "IExecutionContext",
    "tensor": "ITensor", "context_of_profile": "IExecutionContext", "self._config": "IRuntimeConfig",
    "self._cache": "IRuntimeCache",
}  # fmt: skip
RETURNS = {
    "_context": "IExecutionContext",
    "_network": "INetworkDefinition",
    "_tensorrt": "module",
}  # of functions of our own


class Usage(ast.NodeVisitor):
    """Problems, and everything that was compared, of one module's source."""

    def __init__(self, description: dict, name: str):
        self.classes, self.module, self.name = description["classes"], description["module"], name
        self.compared: set[str] = set()
        self.problems: list[str] = []
        self._types: list[dict[str, str]] = [{}]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        known = {a.arg: PARAMETERS[a.arg] for a in node.args.args if a.arg in PARAMETERS}
        self._types.append({**self._types[-1], **known})
        self.generic_visit(node)
        self._types.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            kind = self._type(base)
            if kind and kind.startswith("class "):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                        self._member(kind.removeprefix("class "), method.name, method)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self._bind(target, node.value)

    def visit_For(self, node: ast.For) -> None:
        if isinstance(node.target, ast.Name) and node.target.id in PARAMETERS:
            self._types[-1][node.target.id] = PARAMETERS[node.target.id]
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        kind = self._type(node.value)
        if kind == "module":
            self._exists(node.attr in self.module, f"trt.{node.attr}", node)
        elif kind:
            self._member(kind.removeprefix("class "), node.attr, node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Attribute):
            kind = self._type(node.func.value)
            if kind and kind != "module" and not kind.startswith("class "):
                self._fits(kind, node.func.attr, node)
            elif kind == "module" and node.func.attr in self.classes:
                self._fits(node.func.attr, "__init__", node)
        self.generic_visit(node)

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, of in zip(target.elts, value.elts):
                self._bind(one, of)
        elif isinstance(target, ast.Name):
            kind = self._type(value)
            if kind:
                self._types[-1][target.id] = kind
            else:
                self._types[-1].pop(target.id, None)

    def _type(self, node: ast.expr) -> str | None:
        """ "module", "class X" (X itself), "X" (one of it), or None."""
        if isinstance(node, ast.Name):
            return self._types[-1].get(node.id)
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and f"{node.value.id}.{node.attr}" in PARAMETERS:
                return PARAMETERS[f"{node.value.id}.{node.attr}"]
            owner = self._type(node.value)
            return f"class {node.attr}" if owner == "module" and node.attr in self.classes else None
        if isinstance(node, ast.IfExp):
            return self._type(node.body) or self._type(node.orelse)
        if isinstance(node, ast.BoolOp):
            return next(filter(None, map(self._type, node.values)), None)
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                return RETURNS.get(node.func.id)
            if isinstance(node.func, ast.Attribute):
                owner, name = self._type(node.func.value), node.func.attr
                if owner == "module" and name in self.classes:
                    return name
                if owner is None:
                    return RETURNS.get(name)
                returned = {s["returns"] for s in self.classes.get(owner, {}).get(name, [])} & self.classes.keys()
                return next(iter(returned), None)
        return None

    def _member(self, kind: str, name: str, node: ast.AST) -> None:
        self._exists(name in self.classes.get(kind, {}), f"{kind}.{name}", node)

    def _exists(self, there: bool, what: str, node: ast.AST) -> None:
        self.compared.add(what)
        if not there:
            self.problems.append(f"{self.name}:{node.lineno}: there is no {what}")

    def _fits(self, kind: str, name: str, node: ast.Call) -> None:
        signatures = self.classes.get(kind, {}).get(name, [])
        if not signatures or any(isinstance(a, ast.Starred) for a in node.args):
            return
        self.compared.add(f"{kind}.{name}()")
        keywords = [k.arg for k in node.keywords]
        if not any(_accepts(s["arguments"], len(node.args), keywords) for s in signatures):
            self.problems.append(f"{self.name}:{node.lineno}: {kind}.{name} does not take these arguments")


def _accepts(arguments: list[list], positional: int, keywords: list[str]) -> bool:
    names = [name for name, _ in arguments]
    given = [*names[:positional], *keywords]
    required = [name for name, optional in arguments if not optional]
    return positional <= len(names) and len(set(given)) == len(given) and set(required) <= set(given) <= set(names)


def compare(source: str, description: dict, name: str) -> Usage:
    usage = Usage(description, name)
    usage.visit(ast.parse(source))
    return usage


def compare_file(path: Path, description: dict) -> Usage:
    return compare(path.read_text(), description, path.name)
