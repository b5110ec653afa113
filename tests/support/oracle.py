"""The float64 oracle: Schedule-Free learning with explicit x, y and z, line by line from the papers.

It shares no code with the library, keeps no gap, and updates one parameter at a time.
"""

from dataclasses import dataclass, field
from math import sqrt

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass
class Oracle:
    """The oracle of one parameter, with the options of the optimizers; ``rule`` is the name in the registry."""

    start: Vector
    rule: str
    lr: float
    beta: float
    beta2: float = 0.999
    eps: float = 1e-8
    inner_momentum: float = 0.0
    silent_sgd_phase: bool = True
    ns_steps: int = 5
    weight_decay: float = 0.0
    corrected_decay: bool = False
    decay_at: str = "y"
    warmup_steps: int = 0
    r: float = 0.0
    weight_lr_power: float = 2.0
    averaging_warmup_steps: int = 0
    weight_lr: str = "maximum"
    cooldown_start: int | None = None
    constant_c: float | None = None
    beta_max: float | None = None
    anneal_steps: int = 1
    growing_power: float | None = None
    growing_start: int = 1
    maximize: bool = False

    t: int = 0
    lr_max: float = 0.0
    weight_sum: float = 0.0
    gamma: float = 0.0
    c: float = 0.0
    x: Vector = field(init=False)
    y: Vector = field(init=False)
    z: Vector = field(init=False)
    m: Vector = field(init=False)
    v: Vector = field(init=False)

    def __post_init__(self) -> None:
        self.x, self.y, self.z = self.start.copy(), self.start.copy(), self.start.copy()
        self.m, self.v = np.zeros_like(self.start), np.zeros_like(self.start)

    def step(self, gradient: Vector, polyak: float = 1.0) -> None:
        self.t += 1
        t = self.t
        g = -gradient if self.maximize else gradient
        gamma = self.lr * polyak
        if self.warmup_steps and t < self.warmup_steps:
            gamma = self.lr * polyak * t / self.warmup_steps

        # The direction.
        if self.rule == "sgd":
            d = g
        elif self.rule == "lion":
            d = np.sign(self.inner_momentum * self.m + (1 - self.inner_momentum) * g)
            self.m = self.beta2 * self.m + (1 - self.beta2) * g
        elif self.rule == "adopt" and t == 1:
            d, gamma, self.v = 0 * g, 0.0, g**2
        elif self.rule == "adopt":
            bound = (t - 1) ** 0.25
            d = np.clip(g / np.maximum(np.sqrt(self.v), self.eps), -bound, bound)
            self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        elif self.rule == "muon" and g.ndim == 2:
            self.m = self.inner_momentum * self.m + (1 - self.inner_momentum) * g
            look_ahead = self.inner_momentum * self.m + (1 - self.inner_momentum) * g
            u, s, v = np.linalg.svd(look_ahead, full_matrices=False)
            s = s / (np.sqrt((s**2).sum()) + self.eps)
            for _ in range(self.ns_steps):
                s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
            d = 0.2 * sqrt(max(g.shape)) * (u * s) @ v
        else:
            inner_momentum = 0.0 if self.rule == "muon" else self.inner_momentum
            self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
            v_hat = self.v / (1 - self.beta2**t)
            self.m = inner_momentum * self.m + (1 - inner_momentum) * g
            m_hat = self.m / (1 - inner_momentum**t)
            d = m_hat / (np.sqrt(v_hat) + self.eps)
        if self.rule == "radam":
            rho_inf = 2 / (1 - self.beta2) - 1
            rho = rho_inf - 2 * t * self.beta2**t / (1 - self.beta2**t)
            if rho > 4:
                gamma *= sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            elif self.silent_sgd_phase:
                gamma = 0.0
            else:
                d = g

        # z' = z - gamma (d + lambda w)
        decayed = self.y if self.decay_at == "y" else self.z
        decay = self.weight_decay * gamma if self.corrected_decay else self.weight_decay
        self.z = self.z - gamma * (d + decay * decayed)

        # x' = (1 - c) x + c z'
        self.lr_max = max(self.lr_max, gamma)
        if gamma == 0:
            c = 0.0
        elif self.constant_c is not None:
            c = self.constant_c
        elif t <= self.averaging_warmup_steps:
            c = 1.0
        else:
            s = t
            if self.cooldown_start is not None and t > self.cooldown_start:
                s = t - self.cooldown_start
                if s == 1:
                    self.weight_sum = 0.0
            w = s**self.r * (self.lr_max if self.weight_lr == "maximum" else gamma) ** self.weight_lr_power
            self.weight_sum += w
            c = w / self.weight_sum
        self.x = (1 - c) * self.x + c * self.z
        self.gamma, self.c = gamma, c

        # y' = (1 - beta) z' + beta x'
        if gamma == 0:
            return
        beta = self.beta
        if self.beta_max is not None:
            p = min(t / self.anneal_steps, 1.0)
            beta = 1 - np.exp((1 - p) * np.log(1 - self.beta) + p * np.log(1 - self.beta_max))
        if self.growing_power is not None and t > self.growing_start:
            beta = 1 - (self.growing_start / t) ** self.growing_power * (1 - self.beta)
        self.y = (1 - beta) * self.z + beta * self.x


@dataclass
class PolyakOracle:
    """The Polyak step of several parameters with one rule; its sums are over all parameters."""

    oracles: list[Oracle]
    f_star: float = 0.0
    norm_beta: float = 1.0
    max_step: float = float("inf")
    eps: float = 1e-12

    history: list[tuple[float, float]] = field(default_factory=list)

    def step(self, gradients: list[Vector], loss: float) -> float:
        """Make one step of all parameters, and return the step size s."""
        inner = sum(float((g * (o.z - o.y)).sum()) for g, o in zip(gradients, self.oracles, strict=True))
        if self.oracles[0].rule == "sgd":
            size = sum(float((g**2).sum()) for g in gradients)
        else:
            size = sqrt(np.pi / 2) * sum(float(np.abs(g).sum()) for g in gradients)
        s = 0.0
        if size > 0:
            self.history.append((loss - self.f_star + inner, size))
            weights = self.norm_beta ** np.arange(len(self.history))[::-1]
            excess, mean_size = np.average(self.history, axis=0, weights=weights)
            s = min(self.max_step, max(0.0, float(excess)) / (float(mean_size) + self.eps))
        for g, oracle in zip(gradients, self.oracles, strict=True):
            oracle.step(g, s)
        return s


@dataclass
class DistanceOracle:
    """The distance step of several parameters with one rule; its sums are over all parameters."""

    oracles: list[Oracle]
    factor: float = 1.6
    start: float = 1e-3
    growth: float = 1.2
    early: float = 2.0
    noise_beta: float | None = 0.95
    least_noise: float = 0.1

    t: int = 0
    mean_square: float = 0.0  # of the gradients of SGD
    noise: float = 0.0
    energy: float = 0.0
    z0: list[Vector] = field(init=False)
    m: list[Vector] = field(init=False)
    remembered: float = 0.0

    def __post_init__(self) -> None:
        self.z0 = [oracle.start.copy() for oracle in self.oracles]
        self.m = [np.zeros_like(start) for start in self.z0]
        self.r = self.start
        self.gamma = self.factor * self.start

    def step(self, gradients: list[Vector]) -> float:
        """Make one step of all parameters, and return the step size, without the learning rates."""
        self.t += 1
        t = self.t
        gs = [-g if o.maximize else g for g, o in zip(gradients, self.oracles, strict=True)]
        is_sgd = self.oracles[0].rule == "sgd"
        hs = [np.ones_like(g) if is_sgd else self.denominator(o, g) for g, o in zip(gs, self.oracles, strict=True)]
        sum_h = sum(float(h.sum()) for h in hs)
        sum_g = sum(float((g**2).sum()) for g in gs) if is_sgd else sum_h

        self.remembered += 1
        bound = self.factor * (1 + self.early / sqrt(t)) * self.r / (t * self.remembered) ** 0.25

        # The noise
        if self.noise_beta is not None:
            b = self.noise_beta
            self.m = [b * m + (1 - b) * g for m, g in zip(self.m, gs, strict=True)]
            phi = (1 - b) / (1 + b) * (1 - b ** (2 * t)) / (1 - b**t) ** 2
            m_hat = [m / (1 - b**t) for m in self.m]
            noise = sum(float((m**2 / h).sum()) for m, h in zip(m_hat, hs, strict=True)) / phi
            self.noise = b * self.noise + (1 - b) * noise
            self.energy = b * self.energy + (1 - b) * sum_g
            bound /= sqrt(min(1.0, max(self.least_noise, self.noise / self.energy)))

        self.gamma = min(self.growth * self.gamma, bound)
        self.mean_square += (sum_g / sum_h - self.mean_square) / t
        step = self.gamma / sqrt(self.mean_square) if is_sgd else self.gamma
        before = [o.gamma for o in self.oracles]
        for g, o in zip(gradients, self.oracles, strict=True):
            o.step(g, step)

        # The steps that weight decay has not forgotten
        lambdas = [o.weight_decay * (b if o.corrected_decay else 1) for b, o in zip(before, self.oracles, strict=True)]
        forgotten = [o.gamma * each for each, o in zip(lambdas, self.oracles, strict=True)]
        share = sum(each * float(h.sum()) for each, h in zip(forgotten, hs, strict=True)) / sum_h
        self.remembered *= 1 - min(1, share)
        away = sum(float((h * (o.x - z0) ** 2).sum()) for h, o, z0 in zip(hs, self.oracles, self.z0, strict=True))
        self.r = max(self.r, sqrt(away / sum_h))
        return step

    @staticmethod
    def denominator(oracle: Oracle, g: Vector) -> Vector:
        v = oracle.beta2 * oracle.v + (1 - oracle.beta2) * g**2
        return np.asarray(np.sqrt(v / (1 - oracle.beta2 ** (oracle.t + 1))) + oracle.eps)
