"""Faults of many kinds for `benchmarks.faults`: a place in the source, what stands there, and what is put instead.

Each is what somebody could write by mistake: a sign, a power, a boundary, one number for another, a condition the wrong
way round, a line that is missing, a copy that is none, a default that moved.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """A wrong text in the place of the right one, which stands once in the file."""

    file: str  # below src/unscheduled
    right: str
    wrong: str


FAULTS = (
    # The mathematics.
    Fault("formulas/iterates.py", "c * next_beta + beta - next_beta, 1.0", "c * beta + beta - next_beta, 1.0"),
    Fault("formulas/iterates.py", "1.0 - next_beta * (1.0 - c), c", "1.0 - beta * (1.0 - c), c"),
    Fault("formulas/iterates.py", "y + gap_in_y * gap - move_in_y", "y - gap_in_y * gap - move_in_y"),
    Fault("formulas/iterates.py", "return (z - y) / beta", "return (z - y) * beta"),
    Fault("formulas/iterates.py", "return y + (beta - next_beta) * gap", "return y + (next_beta - beta) * gap"),
    Fault("formulas/iterates.py", "weight_decay * y + weight_decay_of_gap", "weight_decay * y - weight_decay_of_gap"),
    Fault("formulas/averaging.py", "(1.0 * counted) ** self.r *", "(1.0 * step) ** self.r *"),
    Fault(
        "formulas/averaging.py", "where(step == start + 1, 0.0, weight_sum)", "where(step == start, 0.0, weight_sum)"
    ),
    Fault("formulas/averaging.py", "warms_up = step <= self.warmup_steps", "warms_up = step < self.warmup_steps"),
    Fault("formulas/averaging.py", "(1.0 - beta) * C - 1.0", "(1.0 - beta) * C"),
    Fault("formulas/interpolation.py", "minimum(step / self.steps, 1.0)", "minimum((step - 1) / self.steps, 1.0)"),
    Fault("formulas/interpolation.py", "self.start / maximum(step, 1)", "self.start / (step + 1)"),
    Fault("formulas/step_size.py", "minimum(1.0, step / warmup_steps)", "minimum(1.0, step / (warmup_steps + 1))"),
    Fault("formulas/step_size.py", "2.0 * step * decayed / (1.0 - decayed)", "step * decayed / (1.0 - decayed)"),
    Fault("formulas/step_size.py", "loss - self.f_star + correlation, norm", "loss - self.f_star - correlation, norm"),
    # The algorithms.
    Fault(
        "algorithms/adamw.py",
        "return sqrt(inverse_bias_correction2 * exp_avg_sq) + eps",
        "return sqrt(inverse_bias_correction2 * exp_avg_sq + eps)",
    ),
    Fault(
        "algorithms/adamw.py",
        '(lr if group["corrected_decay"] else 1.0)',
        '(1.0 if group["corrected_decay"] else lr)',
    ),
    Fault("algorithms/adamw.py", "return math.sqrt(math.pi / 2.0) *", "return math.sqrt(2.0 / math.pi) *"),
    Fault("algorithms/adopt.py", "(step - 1) ** 0.25", "step ** 0.25"),
    Fault("algorithms/muon.py", "param.dim() >= 2 and not", "param.dim() > 2 and not"),
    Fault("formulas/distance.py", "maximum(before.reached, sqrt(", "maximum(before.reached, ("),
    Fault("formulas/distance.py", "(1.0 - minimum(step * _ratio(sums.decay", "(1.0 + minimum(step * _ratio(sums.decay"),
    Fault("optimizer/distance.py", 'return lr * group["weight_decay"] *', 'return group["weight_decay"] *'),
    # The kernels.
    Fault("kernels/foreach.py", "if direction is batch.grads:", "if False:"),
    Fault(
        "kernels/foreach.py",
        "gaps, direction, alpha=-coefficients.move_in_gap * lr",
        "gaps, direction, alpha=-coefficients.move_in_gap",
    ),
    Fault("kernels/foreach.py", "grads = torch._foreach_neg(grads)", "torch._foreach_neg_(grads)"),
    Fault("kernels/loop.py", "-grad if scalars.maximize else grad", "grad"),
    Fault("kernels/batch.py", "found.append((seen[positions[0]], _at", "found.append((seen[0], _at"),
    Fault("kernels/batch.py", "known and facts == self._facts and all(", "known and all("),
    Fault("kernels/batch.py", "list(map(Tensor.data_ptr, column))", "list(map(id, column))"),
    Fault("kernels/tensorwise.py", "of_one(number, position)", "of_one(number, 0)"),
    # The state.
    Fault("state/quantization.py", "blocks.abs().amax(1) / 32767.0", "blocks.amax(1) / 32767.0"),
    Fault("state/quantization.py", "number >> 16 if position % 2 == 0 else", "number >> 16 if position >= 0 else"),
    Fault("state/quantization.py", "(steps + (rounding >> 1)) >> 15", "steps >> 15"),
    Fault("state/split_weights.py", "exponent - 40 + 127", "exponent - 39 + 127"),
    Fault("state/split_weights.py", "+ 0x8000) >> 16", "+ 0x7FFF) >> 16"),
    Fault("state/parameter.py", 'state: State = {"step": 0}', 'state: State = {"step": 1}'),
    Fault(
        "state/parameter.py",
        "return _holds_average(param, y, state, beta) or _holds(param, y)",
        "return _holds_average(param, y, state, beta)",
    ),
    Fault("state/parameter.py", "param.copy_(written[param])\n", "pass\n"),
    Fault("state/parameter.py", "return torch.float32 if is_split(param.dtype) else param.dtype", "return param.dtype"),
    Fault("state/buffers.py", "if values.stride() != buffer.stride():", "if False:"),
    # The optimizer's parts.
    Fault("optimizer/counters.py", 'step - group["averaging_start"], lr', "step, lr"),
    Fault("optimizer/counters.py", 'maximum(group["lr_max"], effective_lr)', "effective_lr"),
    Fault("optimizer/counters.py", "moves = effective_lr > 0.0", "moves = effective_lr >= 0.0"),
    Fault("optimizer/stepper.py", "and (on_device or next_beta != beta):", "and on_device:"),
    Fault("optimizer/stepper.py", 'if any(map(contains, here, repeat("kept"))):', "if False:"),
    Fault("optimizer/stepper.py", "factor * algorithm._mover.factor(index)", "factor"),
    Fault("optimizer/weights.py", "put_gradient_points(to_x, written)\n            raise", "raise"),
    Fault("optimizer/weights.py", "at_x = at_x | self.given_up\n", "at_x = set(at_x)\n"),
    Fault("optimizer/weights.py", "return self.live.give_out(states)", "return states"),
    Fault("optimizer/reconciliation.py", "self.written[param] = written", "pass"),
    Fault("optimizer/gradient_origin.py", "and not _is_zero(grad):", "and _is_zero(grad):"),
    Fault("optimizer/base.py", "torch.clear_autocast_cache()", "pass"),
    Fault(
        "optimizer/base.py", "self._weights.live.outdate()\n        if self._weights.writes", "if self._weights.writes"
    ),
    # The models.
    Fault(
        "model/attached_module.py",
        "if not mode:\n                _tell(self, False)",
        "if not mode:\n                pass",
    ),
    Fault("model/attached_module.py", "copy_notes(param, memo)", "pass"),
    Fault(
        "model/batchnorm.py",
        "cast(Tensor, found.squares) / (found.count - 1)",
        "cast(Tensor, found.squares) / found.count",
    ),
    Fault("model/batchnorm.py", "recent.stale = False", "pass"),
    Fault("model/weight_decay_groups.py", "param.dim() < 2 or", "param.dim() < 1 or"),
    # The files.
    Fault(
        "checkpoints/optimizer_state.py", 'placed: State = {"step": int(state["step"])}', 'placed: State = {"step": 0}'
    ),
    Fault(
        "checkpoints/optimizer_state.py",
        "if name in KINDS or (name not in FORMER and not param_groups.is_off(saved[name])):",
        "if name in KINDS:",
    ),
    Fault("checkpoints/importing.py", "if lr_max == 0.0:", "if lr_max < 0.0:"),
    Fault("checkpoints/importing.py", '"step": step, "gap": torch', '"step": 0, "gap": torch'),
    Fault(
        "checkpoints/matching.py",
        '{**first, "params": [found[name][1] for name in group]',
        '{**first, "params": [key for _, key in found.values()]',
    ),
)
