"""Python source as a text that comments, docstrings, formatting and the place in a file leave as it is.

Texts are the same under every Python that the package runs on, so what is hashed here can be committed.
"""

import ast
import hashlib

_LEFT_OUT = ("ctx", "kind", "type_comment", "type_ignores")  # of each node: they follow from the others, or say nothing


def _is_comment(node) -> bool:
    """A docstring, or another string that stands alone."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def text(node) -> str:
    """The text of a node of a syntax tree, or of a list of them. Fields that are empty are left out, as newer Pythons
    have more of them."""
    if isinstance(node, ast.Constant):
        return f"{type(node.value).__name__} {node.value!r}"
    if isinstance(node, list):
        return f"[{', '.join(text(item) for item in node if not _is_comment(item))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, value) for name, value in ast.iter_fields(node) if name not in _LEFT_OUT)
    filled = (f"{name}={text(value)}" for name, value in fields if value is not None and value != [])
    return f"{type(node).__name__}({', '.join(filled)})"


def digest(*texts: str) -> str:
    """16 hexadecimal digits that change with any of ``texts``, their order or their bounds."""
    whole = hashlib.sha256()
    for one in texts:
        encoded = one.encode()
        whole.update(f"{len(encoded)} ".encode() + encoded)
    return whole.hexdigest()[:16]
