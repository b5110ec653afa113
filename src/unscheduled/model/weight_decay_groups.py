"""Parameter groups with weight decay for matrices and kernels, and without it for biases and normalisations."""

from typing import Any

from torch import nn

from unscheduled.formulas.validation import require_within

NORMALISATIONS = (nn.LayerNorm, nn.RMSNorm)  # which may have more than one dimension, unlike the others


def param_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters of a model in two groups, with and without weight decay.

    Parameters of two or more dimensions (matrices, kernels, embeddings) have weight decay. Parameters of fewer
    dimensions (biases, gains, scalars) and those of LayerNorm and RMSNorm of any shape have none. Each parameter is in
    the groups once, with its name, also if it is tied or needs no gradient. There is no empty group.

    Call it after the model was moved or sharded, as for every optimizer. It does not work with FSDP1, which flattens
    all matrices.

    Args:
        model: the model to train.
        weight_decay: lambda of the first group, >= 0; the second group has 0.

    Returns:
        Parameter groups for any optimizer: dictionaries with ``params``, named, and ``weight_decay``.

    Raises:
        ValueError: if ``weight_decay`` is out of its range, or the model has no parameters.

    Example:
        >>> import torch
        >>> import unscheduled
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.LayerNorm(2))
        >>> groups = unscheduled.param_groups(model, weight_decay=0.1)
        >>> optimizer = unscheduled.AdamWScheduleFree(groups).attach(model)
        >>> [(group["weight_decay"], group["param_names"]) for group in optimizer.param_groups]
        [(0.1, ['0.weight']), (0.0, ['0.bias', '1.weight', '1.bias'])]
    """
    require_within("[0, inf)", "weight_decay", weight_decay, "use 0 for none, 0.1 for language models")
    modules = (module for module in model.modules() if isinstance(module, NORMALISATIONS))
    normalising = {param for module in modules for param in module.parameters(recurse=False)}
    decayed: list[tuple[str, nn.Parameter]] = []
    spared: list[tuple[str, nn.Parameter]] = []
    for name, param in model.named_parameters():
        (spared if param.dim() < 2 or param in normalising else decayed).append((name, param))
    if not decayed and not spared:
        raise ValueError(f"{type(model).__name__} has no parameters: build it before its optimizer")
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
