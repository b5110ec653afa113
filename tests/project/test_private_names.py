"""The private names of torch that the library uses: all of them, each with the reason, and there in this torch."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import unscheduled

PACKAGE = Path(unscheduled.__file__).parent

FOREACH = "torch publishes its operations on lists of tensors under names with an underscore only"
SAVED = "torch's distributed checkpoints contain it, and a restricted unpickler has to name what it allows"
PRIVATE = {
    "torch._disable_dynamo": "the public torch.compiler.disable imports the compiler at once",
    **{
        f"torch._foreach_{name}": FOREACH
        for name in (
            *("add", "add_", "addcmul_", "copy_", "div", "mul", "mul_", "neg", "norm", "reciprocal_", "sign", "sqrt"),
            *("sqrt_", "sub"),
        )
    },
    "torch.Tensor._version": "autograd's count of writes is not to be had otherwise",
    "torch.Tensor._is_zerotensor": "no public name tells a tensor that stands for zeros and has no memory",
    "torch.nn.Module._save_to_state_dict": "modules that save in their own way override it",
    "torch.nn.modules.batchnorm._BatchNorm": "the class of all BatchNorm layers has no public name",
    "torch.utils._pytree.tree_map_only": "the public torch.utils.pytree is newer than the oldest torch supported",
    "torch.serialization._get_layout": SAVED,
    "torch.distributed.checkpoint.filesystem._StorageInfo": SAVED,
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING": SAVED,
    "torch.distributed._shard.sharded_tensor.metadata.TensorProperties": SAVED,
}
ON_INSTANCES = {
    "_state_dict_hooks": "of a module: the library's hook has to run before those of users",
    "_orig_mod": "of what torch.compile returns: the module that it compiles",
    "_overlap_with_ddp": "of a ZeroRedundancyOptimizer: it then makes no step of its own",
}
OF_PYTHON = {"_replace", "_fields", "_local"}
"""Of named tuples, where they are public; and a module of pathlib that pickled paths name."""


def files() -> Iterator[Path]:
    """The modules of the library, but for the lab."""
    return (file for file in PACKAGE.rglob("*.py") if "lab" not in file.relative_to(PACKAGE).parts)


def names_in(node: ast.AST) -> list[str]:
    """The names that an expression or an import uses, also in a string that is nothing but a dotted name."""
    if isinstance(node, ast.Attribute):
        return [node.attr]
    if isinstance(node, ast.ImportFrom):
        return [*(node.module or "").split("."), *(alias.name for alias in node.names)]
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.]+", node.value):
        return node.value.split(".")
    return []


def defined_in(node: ast.AST) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return [node.attr] if isinstance(node.value, ast.Name) and node.value.id == "self" else []
    return [node.id] if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else []


def test_no_other_private_name_is_used() -> None:
    nodes = [node for file in files() for node in ast.walk(ast.parse(file.read_text()))]
    own = {name for node in nodes for name in defined_in(node)} - {"_version"}
    used = {name for node in nodes for name in names_in(node) if re.match(r"_[a-zA-Z]", name)}
    used = {name for name in used - own if not name.startswith("_unscheduled_") and name != "_scale"}
    listed = {part for name in PRIVATE for part in name.split(".") if part.startswith("_")}
    assert used == listed | ON_INSTANCES.keys() | OF_PYTHON


@pytest.mark.parametrize("name", PRIVATE)
def test_this_torch_has_it(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    owner, _, cls = module.rpartition(".")
    found = getattr(importlib.import_module(owner), cls) if cls in ("Tensor", "Module") else None
    assert hasattr(found or importlib.import_module(module), attribute)


def test_no_memory_of_objects_is_read() -> None:
    """Nothing follows the addresses of Python's or torch's objects, nor mangled names of C++."""
    for file in files():
        text = file.read_text()
        for forbidden in ("_cdata", "__basicsize__", "from_address", "aoti_torch", "_ZN", "c_void_p.from"):
            assert forbidden not in text, f"{file.name}: {forbidden}"
