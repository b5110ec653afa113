"""The end-game: handing a run over to a plain optimizer of torch."""

import torch

from unscheduled.algorithms.base_step import narrow
from unscheduled.algorithms.sgd import SGDScheduleFree
from unscheduled.algorithms.wrapper import ScheduleFreeWrapper
from unscheduled.checkpoints.exporting import export_adamw_state_dict, last_lr
from unscheduled.formulas.iterates import coefficients
from unscheduled.optimizer.base import ScheduleFreeOptimizer
from unscheduled.state import param_groups
from unscheduled.state.device_math import on_host
from unscheduled.state.param_groups import Group


def to_torch(optimizer: ScheduleFreeOptimizer) -> torch.optim.Optimizer:
    """Hand a run over to a plain optimizer, which goes on from the average x: to finish with a schedule, say.

    The parameters are put at x, and the Schedule-Free optimizer is detached; in eval mode, it refuses to step from then
    on. What takes over depends on it:

    - :class:`AdamWScheduleFree` and :class:`RAdamScheduleFree`: ``torch.optim.AdamW``, with the second moments and
      their counts, see :func:`export_adamw_state_dict`;
    - :class:`SGDScheduleFree`: ``torch.optim.SGD`` without momentum;
    - :class:`ScheduleFreeWrapper`: its base, as it is, except that its state has the precision of the parameters.

    The learning rate of each group is (1 - beta (1 - c)) gamma, gamma the last effective one (as set, where that was
    0): that is how far a gradient moves y itself in the same step. It is gamma without averaging and at the first step,
    and tends to (1 - beta) gamma, at which plain gradient descent is stable even where it is not at gamma; at beta = 1
    it is next to nothing. Set another in its ``param_groups``, and let a schedule drive that to 0. AdamC's decay
    becomes gamma lambda.

    Args:
        optimizer: one of those.

    Raises:
        ValueError: if torch has no such optimizer, a wrapper adds weight decay to its base's, or a Polyak step has not
            been made yet; nothing is changed.

    Example:
        >>> import torch
        >>> import unscheduled
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = unscheduled.AdamWScheduleFree([weight], lr=0.1)
        >>> (weight**2).sum().backward()
        >>> optimizer.step()
        >>> plain = unscheduled.to_torch(optimizer)
        >>> type(plain).__name__, round(plain.param_groups[0]["lr"], 6)
        ('AdamW', 0.1)
    """
    gammas = list(map(last_lr, optimizer.param_groups))
    if isinstance(optimizer, ScheduleFreeWrapper):
        for index, group in enumerate(optimizer.param_groups):
            if group["weight_decay"] > 0.0:
                raise ValueError(
                    f"parameter group {index}: weight_decay = {group['weight_decay']} at y is none of the base's: make "
                    "it 0, and give the base a decay of its own"
                )
        optimizer._check_groups()  # pyright: ignore[reportPrivateUsage]  (the base has all parameters then)
        optimizer.eval().detach()
        plain = optimizer.base
        narrow(plain, [param for group in plain.param_groups for param in group["params"]])
        pairs = zip(optimizer.param_groups, plain.param_groups, strict=True)
        gammas = [float((base if on_host(group["step"]) > 0 else group)["lr"]) for group, base in pairs]  # without d
    elif isinstance(optimizer, SGDScheduleFree):
        optimizer.eval().detach()
        plain = torch.optim.SGD([_group(group, ("weight_decay", "maximize")) for group in optimizer.param_groups])
    else:
        exported = export_adamw_state_dict(optimizer)
        optimizer.eval().detach()
        plain = torch.optim.AdamW([_group(group, ()) for group in optimizer.param_groups])
        plain.load_state_dict(exported)
    for group, ours, gamma in zip(plain.param_groups, optimizer.param_groups, gammas, strict=True):
        c, beta = on_host(ours["c"]), on_host(ours["beta"])
        param_groups.put_lr(group, coefficients(c, beta, beta).move_in_y * gamma)
    return plain


def _group(group: Group, options: tuple[str, ...]) -> Group:
    return {"params": param_groups.named(group), **{name: group[name] for name in options}}
