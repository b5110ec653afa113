"""How well clicks are predicted: the log loss and the area under the curve."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional


def click_metric(logits: Tensor, clicks: Tensor) -> Mapping[str, float]:
    """The mean log loss and the AUC of predictions (n,) of clicks (n,) that are 0 or 1."""
    loss = functional.binary_cross_entropy_with_logits(logits, clicks).item()
    return {"loss": loss, "auc": area_under_curve(logits, clicks)}


def area_under_curve(scores: Tensor, clicks: Tensor) -> float:
    """The AUC: the share of all pairs of a click and a non-click in which the click has the higher score.

    A pair with equal scores counts one half.

    Example:
        >>> area_under_curve(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
        0.875
    """
    clicked = clicks > 0
    positive, negative = scores[clicked], scores[~clicked].sort().values
    below = torch.searchsorted(negative, positive)
    not_above = torch.searchsorted(negative, positive, right=True)
    return ((below + not_above).double().mean() / (2 * len(negative))).item()
