"""AdamW with a schedule and Schedule-Free AdamW in plain torch, for the page "How it works".

The numbers in the comments are those of the table there. ``grad`` returns the gradient at a point, and each function
is a generator that makes one step at a time. A test compares every step with the optimizers.
"""

from itertools import count
from math import cos, pi

import torch


def adamw(w, grad, lr, betas, eps, decay, warmup, steps):
    beta1, beta2 = betas
    m = torch.zeros_like(w)  # 1
    v = torch.zeros_like(w)  # 1
    for t in range(1, steps + 1):
        done = max(0, t - 1 - warmup) / (steps - warmup)  # 2
        cosine = (1 + cos(pi * done)) / 2  # 2
        gamma = lr * min(1, t / warmup) * cosine  # 2
        # 3: the gradient is taken at the weights
        g = grad(w)  # 3
        m = beta1 * m + (1 - beta1) * g  # 4
        m_hat = m / (1 - beta1**t)  # 5
        v = beta2 * v + (1 - beta2) * g**2  # 6
        v_hat = v / (1 - beta2**t)  # 7
        d = m_hat / (v_hat.sqrt() + eps)  # 8
        d = d + decay * w  # 9
        w = w - gamma * d  # 10
        yield w, m, v, gamma  # 13


def schedule_free(x, grad, lr, betas, eps, decay, warmup):
    beta, beta2 = betas
    z, v = x, torch.zeros_like(x)  # 1
    lr_max, weight_sum = 0.0, 0.0  # 1
    for t in count(1):
        # 2: no horizon is known, so that after
        # the warmup the learning rate stays
        gamma = lr * min(1, t / warmup)  # 2
        y = (1 - beta) * z + beta * x  # 3
        g = grad(y)  # 3
        # 4, 5: there is no first moment, and
        # z takes the memory of m
        v = beta2 * v + (1 - beta2) * g**2  # 6
        v_hat = v / (1 - beta2**t)  # 7
        d = g / (v_hat.sqrt() + eps)  # 8
        d = d + decay * y  # 9
        z = z - gamma * d  # 10
        lr_max = max(lr_max, gamma)  # 11
        weight_sum += lr_max**2  # 11
        c = lr_max**2 / weight_sum  # 11
        x = (1 - c) * x + c * z  # 12
        yield x, y, z, v, c, gamma  # 13
