"""The lowerings of the definition, each tested equal to it.

| implementation | how | for |
|---|---|---|
| ``loop`` | the definition on each tensor | any rule, device and dtype |
| ``foreach`` | ``torch._foreach_*``, by hand | the default where the rule has it |
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

from unscheduled.kernels import foreach, loop
from unscheduled.kernels.rule import Batch as Batch
from unscheduled.kernels.rule import Rule as Rule
from unscheduled.kernels.rule import Scalars as Scalars
from unscheduled.kernels.rule import Tensors as Tensors

Implementation: TypeAlias = Literal["auto", "loop", "foreach"]
Update: TypeAlias = Callable[[Rule, Batch, Scalars], None]

UPDATES: dict[str, Update] = {"loop": loop.update, "foreach": foreach.update}


def choose(implementation: str, rule: Rule) -> Update:
    """The update of an implementation; ``"auto"`` is the fastest that the rule has.

    Raises:
        ValueError: if there is no such implementation, or the rule lacks it.
    """
    if implementation == "auto":
        return UPDATES["loop" if rule.foreach is None else "foreach"]
    if implementation not in UPDATES:
        raise ValueError(f"implementation = {implementation!r} is unknown: use 'auto', {str(list(UPDATES))[1:-1]}")
    if implementation == "foreach" and rule.foreach is None:
        raise ValueError("implementation = 'foreach' is not there for this rule: use 'auto' or 'loop'")
    return UPDATES[implementation]
