"""The order in which a module's forward method uses its parts, read from the method's source code.

Modules are often registered in another order than they run: BART's encoder registers the norm of
its embeddings behind its layers. Hooks in a forward pass on the meta device, which costs no memory
and no arithmetic, would show the calls. They do not serve, as tiny models showed:

- The pass needs inputs that are valid for the architecture. ViT refuses images of another size than
  its config's, BART refuses texts without an end-of-sequence token.
- Tensors on the meta device have no values, so control flow that depends on values fails:
  "Tensor.item() cannot be called on meta tensors" in BART, GPT-2 and Longformer, which look for
  padding or end-of-sequence tokens.
- Hooks see calls of modules. They do not see when a parameter is used directly, as the class token
  and the position embeddings of ViT, or is handed to a function, as the experts of Mixtral.

The source code is read without running it. What it does not mention stays in the order of
registration.
"""

import ast
import inspect
import textwrap
from functools import cache
from typing import Any, NamedTuple, TypeGuard

from torch import nn

# Builtin functions that inspect their arguments and do not run them.
INSPECTING = {"len", "isinstance", "hasattr", "getattr"}


def execution_order(module: nn.Module) -> list[str]:
    """The names of a module's children and own parameters in the order in which forward uses them.

    What forward does not mention follows what is registered before it.
    """
    kind: Any = type(module)  # mypy takes no class for hashable
    uses = _attribute_uses(kind)
    # `len(self.layers)` above the loop over the layers is no use of them: where a module is called
    # anywhere, only its calls count. Of several uses the first one counts, hence `reversed`.
    called = {use.name for use in uses if use.is_call}
    first_use = {
        use.name: position
        for position, use in reversed(list(enumerate(uses)))
        if use.is_call or use.name not in called
    }
    position = -1
    positions: dict[str, int] = {}
    for name in (*module._parameters, *module._modules):
        position = positions[name] = first_use.get(name, position)
    return sorted(positions, key=positions.__getitem__)  # stable: ties stay as registered


class _Use(NamedTuple):
    """A place where a method reads an attribute of `self`, and whether it calls the attribute."""

    name: str
    is_call: bool


@cache
def _attribute_uses(
    kind: Any, method: str = "forward", callers: frozenset[str] = frozenset()
) -> tuple[_Use, ...]:
    """The uses of attributes of `self` in the order of evaluation, through the methods it calls.

    Empty if there is no source code to read, and for torch's own modules: its containers run in the
    order of registration. `callers` are the methods on the way here, which ends recursion.
    """
    function = inspect.unwrap(inspect.getattr_static(kind, method))
    if kind.__module__.startswith("torch.nn"):
        return ()
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return ()
    visitor = _SelfAttributeVisitor()
    visitor.visit(tree)
    callers = callers | {method}
    uses: list[_Use] = []
    for use in visitor.uses:
        # A method of the class is replaced by what it uses itself; a child module stays.
        is_method = inspect.isfunction(inspect.getattr_static(kind, use.name, None))
        follow = is_method and use.name not in callers
        uses += _attribute_uses(kind, use.name, callers) if follow else [use]
    return tuple(uses)


class _SelfAttributeVisitor(ast.NodeVisitor):
    """Collects the uses of attributes of `self` in the order of evaluation, not of the text.

    In `self.norm(self.dense(x))` the dense layer runs first, and in `y = self.dense(x)` the value
    comes before its target.
    """

    def __init__(self) -> None:
        self.uses: list[_Use] = []

    def visit_Compare(self, node: ast.Compare) -> None:
        # `if self.norm is None` inspects the norm and does not run it.
        if not any(isinstance(operator, (ast.Is, ast.IsNot)) for operator in node.ops):
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Arguments come before the call; what is only inspected is not used."""
        if isinstance(node.func, ast.Name) and node.func.id in INSPECTING:
            return
        for part in (*node.args, *node.keywords):
            self.visit(part)
        if _is_self_attribute(node.func):
            self.uses.append(_Use(node.func.attr, is_call=True))
        else:
            self.visit(node.func)

    def visit_Assign(self, node: ast.Assign) -> None:
        for part in (node.value, *node.targets):
            self.visit(part)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if _is_self_attribute(node):
            self.uses.append(_Use(node.attr, is_call=False))
        self.generic_visit(node)


def _is_self_attribute(node: ast.AST) -> TypeGuard[ast.Attribute]:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )
