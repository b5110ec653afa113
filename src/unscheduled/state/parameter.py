"""The state of one parameter, and how the parameter moves between y and x.

| key | meaning |
|---|---|
| ``step`` | the number of gradients that the parameter has seen |
| ``gap`` | z - x |
| ``low`` | beside a parameter of 16 bits that holds y: what float32 has beyond it |
| ``kept`` | y, bit for bit, kept aside while the parameter holds x; of one of 16 bits, what it held beside ``low`` |
| ``y`` | after loading until the first step: the y that belongs to the state |
| ``z`` | after loading from the ``schedulefree`` package until the first step: z, from which the gap is made |
| ``z0`` | with a :class:`DistanceStep`: the weights before the first gradient, in the parameter's dtype |
| ``grad_avg`` | likewise: a moving average of the gradient |
| others | the buffers of the rule |

A buffer that is stored as codes has its scales beside it, as ``gap_scale``: see :mod:`unscheduled.state.buffers`. y by
itself has the parameter's dtype, or float32 where that has 16 bits.

A parameter without state has seen no gradient: x = y = z.
"""

# torch publishes its foreach operations under names with an underscore:
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from unscheduled.formulas import iterates
from unscheduled.formulas.rule import Rule
from unscheduled.state.buffers import fresh_buffer, store, wide
from unscheduled.state.lists import Lists
from unscheduled.state.quantization import CODES
from unscheduled.state.split_weights import is_split, joined, narrowed, shard, split

State: TypeAlias = dict[str, Any]
PIECE = 1 << 18  # numbers
MANY = 1 << 26  # numbers of parameters that are computed together: there are temporaries of twice their size
ONE_BY_ONE = {"cpu"}
"""The types of devices on which switches compute parameter by parameter, since a launch costs little there."""


class Entry(NamedTuple):
    """A parameter that has a state, the state, and the beta that formed its y."""

    param: Tensor
    state: State
    beta: float


class Iterates(NamedTuple):
    """The three sequences of one parameter, each of its shape: average x, gradient point y, base iterate z.

    Example:
        >>> import unscheduled
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = unscheduled.SGDScheduleFree([weight], lr=0.5, momentum=0.5)
        >>> for _ in range(2):
        ...     weight.grad = torch.ones_like(weight)
        ...     optimizer.step()
        >>> x, y, z = optimizer.iterates(weight)
        >>> x.item(), y.item(), z.item()
        (0.25, 0.125, 0.0)
    """

    x: Tensor
    y: Tensor
    z: Tensor


def state_dtype(param: Tensor) -> torch.dtype:
    """The precision of a parameter's gap and buffers: its own, but at least float32."""
    return torch.promote_types(param.dtype, torch.float32)


def fresh_state(param: Tensor, rule: Rule, compact: bool, of_step: Sequence[str] = ()) -> State:
    """The state before the first gradient: everything is 0, but for z0, which the parameter holds."""
    state: State = {"step": 0}
    for name, dtype in stored_dtypes(param, rule, compact, of_step).items():
        state |= fresh_buffer(param, name, dtype)
    if "z0" in state:
        state["z0"].copy_(param)
    if is_split(param.dtype):
        state["low"] = _nothing_below(param)
    return state


def stored_dtypes(param: Tensor, rule: Rule, compact: bool, of_step: Sequence[str] = ()) -> dict[str, torch.dtype]:
    """How the gap, the buffers of a parameter and those of its step size are stored."""
    names = ("gap", *rule.buffers)
    dtypes = (
        tuple(CODES[code] for code in ("int16", *(rule.compact or ())))
        if compact
        else (state_dtype(param),) * len(names)
    )
    others = {name: param.dtype if name == "z0" else state_dtype(param) for name in of_step}
    return dict(zip(names, dtypes, strict=True)) | others


# y.


def bits_of_y(param: Tensor, state: State) -> Tensor:
    """A copy of the y of a parameter that holds it."""
    if "low" in state and is_split(param.dtype):
        return joined(param.detach(), state["low"])
    return param.detach().to(dtype_of_y(param), copy=True)


def without_y(state: State) -> State:
    """A state without what it holds of y."""
    return {name: value for name, value in state.items() if name not in ("kept", "low", "y", "z")}


def live_y(param: Tensor, state: State, beta: float, training: bool) -> State:
    """y as it is saved, in the memory where it stands: ``y``, and ``low`` beside one of 16 bits.

    If the parameter holds x (not ``training``) and y is nowhere, since other weights were written, y is formed. Until
    the first step, y is not in the memory of the parameter: into that and into y, torch's DCP may read a file.
    """
    if "y" in state and _is_y_of(param, state["y"], state, beta):
        return _halves(param, state["y"])
    if training or ("kept" in state and _is_y_of(param, kept_y(state), state, beta)):
        y = param.detach() if training else state["kept"]
        return {"y": y, "low": state["low"]} if is_split_y(state, y) else {"y": y}
    return _halves(param, gradient_point(param, state, beta, training=False))


def _halves(param: Tensor, y: Tensor) -> State:
    """y as it is saved: of 16 bits in two tensors."""
    if not is_split(param.dtype):
        return {"y": y}
    high, low = torch.empty_like(param), _nothing_below(param)
    split(y, high, low)
    return {"y": high, "low": low}


def is_split_y(state: State, y: Tensor) -> bool:
    """Whether a y has the parameter's 16 bits, and what it has beyond them stands beside it."""
    return "low" in state and is_split(y.dtype)


def whole_y(state: State, y: Tensor) -> Tensor:
    """A y with what stands beside it: a new tensor if it has 16 bits, itself otherwise."""
    return joined(y, state["low"]) if is_split_y(state, y) else y


def kept_y(state: State) -> Tensor:
    """The y that is kept aside: a new tensor if it has 16 bits and the rest beside it."""
    return whole_y(state, state["kept"])


def put_y(param: Tensor, state: State, y: Tensor) -> None:
    """Put y into a parameter, and what it cannot hold beside it."""
    if is_split(param.dtype):
        if "low" not in state:
            state["low"] = _nothing_below(param)
        split(y, param, state["low"])
    else:
        param.copy_(y)


def dtype_of_y(param: Tensor) -> torch.dtype:
    """The precision of y by itself."""
    return torch.float32 if is_split(param.dtype) else param.dtype


def _nothing_below(param: Tensor) -> Tensor:
    return torch.zeros_like(param, dtype=torch.int16, memory_format=torch.preserve_format)


def _formed(param: Tensor, state: State, beta: float) -> Tensor:
    """The y of a parameter that holds x."""
    x = param.detach().to(state_dtype(param))
    return iterates.gradient_point(x, wide(state, "gap"), beta).to(dtype_of_y(param))


def _pieces_with_average(param: Tensor, y: Tensor, state: State, beta: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of a parameter, and the x that belongs to y there: rounded once, to the nearest.

    A piece and what is computed of it stay in the cache of the CPU.
    """
    tensors = param.detach(), y, wide(state, "gap")
    dtype = state_dtype(param)
    whole = not all(type(each) is Tensor and each.is_cpu and each.is_contiguous() for each in tensors)
    columns = [[each] if whole else list(cast(Any, each.view(-1)).split(PIECE)) for each in tensors]
    for here, there, gap in zip(*columns, strict=True):
        yield here, narrowed(iterates.averaged(there.to(dtype), gap, beta), param.dtype)


def _put_average(param: Tensor, y: Tensor, state: State, beta: float) -> None:
    """Put the x that belongs to y into a tensor like the parameter."""
    for here, x in _pieces_with_average(param, y, state, beta):
        here.copy_(x)


def _holds_average(param: Tensor, y: Tensor, state: State, beta: float) -> bool:
    """Whether the parameter holds the x that belongs to y, bit for bit."""
    return all(_same_bits(here, x) for here, x in _pieces_with_average(param, y, state, beta))


def _holds(param: Tensor, y: Tensor) -> bool:
    """Whether the parameter holds y, as far as it can."""
    return _same_bits(param, narrowed(y, param.dtype))


def _same_bits(some: Tensor, other: Tensor) -> bool:
    """Whether they are the same here: of sharded tensors, the parts of this process, which asks no other."""
    some, other = shard(some), shard(other)
    if torch.equal(some, other):
        return True
    return bool(((some == other) | ((some != some) & (other != other))).all())  # NaN is the same as NaN


# Many parameters at once.


def _together(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Lists of those entries whose x a few launches compute: off the CPU, plain, of one device, dtype and beta."""
    kinds: dict[tuple[torch.device, torch.dtype, float], list[Entry]] = {}
    for entry in entries:
        param, gap, beta = entry.param, entry.state["gap"], entry.beta
        if (
            param.device.type not in ONE_BY_ONE
            and {type(param), type(gap)} <= {Tensor, Parameter}
            and param.dtype == gap.dtype
            and param.is_floating_point()
            and param.numel()
        ):
            kinds.setdefault((param.device, param.dtype, beta), []).append(entry)
    for found in kinds.values():
        some: list[Entry] = []
        for entry in found:
            if some and sum(each.param.numel() for each in some) + entry.param.numel() > MANY:
                yield some
                some = []
            some.append(entry)
        yield some


def _averages(some: list[Entry], ys: list[Tensor]) -> list[Tensor]:
    """The x that belong to y of parameters of one beta."""
    return iterates.averaged(Lists(ys), Lists([entry.state["gap"] for entry in some]), some[0].beta).tensors


def averages_together(entries: Iterable[Entry]) -> dict[Tensor, Tensor]:
    """The x of parameters that hold y, as new tensors: of those whose x a few launches compute."""
    found: dict[Tensor, Tensor] = {}
    for some in _together(entry for entry in entries if not {"kept", "y"} & entry.state.keys()):
        params = [entry.param for entry in some]
        found |= zip(params, _averages(some, [param.detach() for param in params]), strict=True)
    return found


def _seen_together(entries: list[Entry]) -> dict[Tensor, Tensor]:
    """The y kept aside of parameters that hold the x that belongs to it, as far as one look at the device tells."""
    found: dict[Tensor, Tensor] = {}
    for some in _together(entry for entry in entries if "kept" in entry.state):
        kept: list[Tensor] = [entry.state["kept"] for entry in some]
        away = torch._foreach_sub(_averages(some, kept), [entry.param.detach() for entry in some])
        largest = cast("list[float]", cast(Any, torch.stack(list(torch._foreach_norm(away, float("inf"))))).tolist())
        found |= {entry.param: y for entry, y, size in zip(some, kept, largest, strict=True) if size == 0.0}
    return found


# Switching.


def put_averages(started: list[Entry], written: dict[Tensor, Tensor]) -> None:
    """Put x into parameters that hold y, and keep y aside, bit for bit: into all or, if it fails, into none.

    That is the weights that were written as x, where the y that was formed from them is still there.
    """
    kept: list[Tensor] = []
    try:
        kept.extend(param.detach().clone() for param, _, _ in started)
        done: set[Tensor] = set()
        for some in _together([entry for entry in started if entry.param not in written]):
            params = [entry.param.detach() for entry in some]
            torch._foreach_copy_(params, _averages(some, params))
            done.update(entry.param for entry in some)
        for (param, state, beta), same in zip(started, kept, strict=True):
            if param in done:
                continue
            weights = written_average(param, written, state, beta, training=True)
            if weights is None:
                _put_average(param, whole_y(state, same), state, beta)
            else:
                param.copy_(weights)
        for (_, state, _), each in zip(started, kept, strict=True):
            state["kept"] = each
    except BaseException:  # out of memory, or interrupted
        for (param, state, _), each in zip(started, kept, strict=False):
            param.copy_(each)
            state.pop("kept", None)
        raise


def keep_gradient_points(started: list[Entry]) -> None:
    """Keep the y of parameters that hold it aside, since weights may be written over them: of all or of none."""
    kept = [param.detach().clone() for param, _, _ in started]
    for (_, state, _), each in zip(started, kept, strict=True):
        state["kept"] = each


def put_gradient_points(started: list[Entry], written: dict[Tensor, Tensor], loading: bool = False) -> None:
    """Put y into parameters that hold x: the bits kept aside, or, if weights were written meanwhile, theirs.

    What was written is the new x, and is noted, unless y tells it; but what is loaded is noted even then, since another
    state may come that belongs to it. If it fails, all hold x again, and it can be done again.
    """
    seen = _seen_together(started)
    for param, state, beta in started:
        y = seen[param] if param in seen else known_gradient_point(param, state, beta)
        if y is None:
            written[param] = param.detach().clone()
            y = _formed(param, state, beta)
        elif loading and not _holds(param, y):
            written[param] = param.detach().clone()
        elif param in written and not _holds(param, y) and not _same_bits(param, written[param]):
            del written[param]
        state["kept"] = y
    done: list[Entry] = []
    try:
        for param, state, beta in started:
            done.append(Entry(param, state, beta))
            put_y(param, state, state["kept"])
    except BaseException:  # out of memory, or interrupted
        for param, state, beta in done:
            if param in written:
                param.copy_(written[param])
            else:
                _put_average(param, state["kept"], state, beta)
        raise
    for _, state, _ in started:
        del state["kept"]


def put_reinterpolated(param: Tensor, state: State, beta: float, next_beta: float) -> None:
    """Form the y of a parameter anew with another beta: x and z stay."""
    y = bits_of_y(param, state).to(state_dtype(param))
    put_y(param, state, iterates.reinterpolated(y, wide(state, "gap"), beta, next_beta))


# Looking at it.


def gradient_point(param: Tensor, state: State, beta: float, training: bool) -> Tensor:
    """A copy of the y of a parameter that holds y (``training``) or x."""
    if training:
        return bits_of_y(param, state)
    known = known_gradient_point(param, state, beta)
    return _formed(param, state, beta) if known is None else known.clone()


def average(param: Tensor, state: State, beta: float, training: bool) -> Tensor:
    """A copy of the bits of x of a parameter that holds y (``training``; maybe not if y is kept aside) or x."""
    if not training or ("kept" in state and not _holds(param, kept_y(state))):
        return param.detach().clone()
    x = torch.empty_like(param)
    _put_average(x, bits_of_y(param, state), state, beta)
    return x


def read(param: Tensor, state: State | None, beta: float, training: bool) -> Iterates:
    """The three sequences of a parameter that holds y (``training``) or x, as new tensors of the state's precision."""
    here = param.detach().to(state_dtype(param), copy=True)
    if not state:
        return Iterates(here, here.clone(), here.clone())
    gap = wide(state, "gap")
    known = bits_of_y(param, state) if training else known_gradient_point(param, state, beta)
    if known is None:
        x, y = here, iterates.gradient_point(here, gap, beta)
    else:
        y = known.to(here.dtype, copy=True)
        x = iterates.averaged(y, gap, beta)
    return Iterates(x, y, iterates.base(y, gap, beta))


def known_gradient_point(param: Tensor, state: State, beta: float) -> Tensor | None:
    """The y kept aside or loaded that belongs to what the parameter holds: to its x, or y itself, put there already."""
    for y in known_ys(state):
        if _is_y_of(param, y, state, beta):
            return y
    return None


def known_ys(state: State) -> Iterator[Tensor]:
    """The y kept aside, and the loaded one, as far as there are any."""
    if "kept" in state:
        yield kept_y(state)
    if "y" in state:
        yield state["y"]


def _is_y_of(param: Tensor, y: Tensor, state: State, beta: float) -> bool:
    """Whether a parameter holds the x that belongs to y, or y itself."""
    return _holds_average(param, y, state, beta) or _holds(param, y)


# Loading.


def settle(param: Tensor, state: State, beta: float, training: bool, loaded_training: bool) -> Tensor | None:
    """Bring together a loaded state and the weights beside it, of which it is not known when they came.

    Weights that were an x, but not to the last bit the one that y tells, or that were loaded just now, are returned.

    If the state has the bits of y, they tell whether the weights are its y or its x; the one that the mode asks for
    (y, if ``training``) is put in. If it has z, as from the ``schedulefree`` package, weights that came since are what
    the file says (y, if ``loaded_training``, or x), and make the gap.
    """
    if param.is_meta:  # not there yet
        return None
    if "z" in state and known_gradient_point(param, state, beta) is None:
        weights, z = param.detach().to(state_dtype(param)), cast(Tensor, state["z"])
        store(state, "gap", iterates.gap_between(weights, z, beta) if loaded_training else z - weights)
        state["y"] = weights.to(dtype_of_y(param), copy=True) if loaded_training else _formed(param, state, beta)
        if training:
            put_y(param, state, state["y"])
    if "y" not in state:
        return None
    holds_y, holds_average = _holds(param, state["y"]), _holds_average(param, state["y"], state, beta)
    made_y = training and not holds_y and not holds_average and makes(param, state["y"], state, beta)
    loaded = training and not holds_y and "kept" in state
    written = param.detach().clone() if made_y or (loaded and holds_average) else None
    if training and (holds_y or holds_average or made_y):
        put_y(param, state, state["y"])
    elif not training and holds_y and not holds_average:
        _put_average(param, state["y"], state, beta)
    return written


def holds_loaded_average(param: Tensor, state: State, beta: float, loaded_training: bool) -> bool:
    """Whether a parameter that is to hold y holds the x that belongs to a loaded state."""
    if "y" not in state or _holds(param, state["y"]):
        return False
    return belongs(param, state, beta) or ("z" in state and not loaded_training)


def belongs(weights: Tensor, state: State, beta: float) -> bool:
    """Whether weights are the y that a state knows, its x, or what that y was formed from as x."""
    if known_gradient_point(weights, state, beta) is not None:
        return True
    return any(makes(weights, y, state, beta) for y in known_ys(state))


def makes(weights: Tensor, y: Tensor, state: State, beta: float) -> bool:
    """Whether y is formed from these weights as x: it does not tell them to the last bit."""
    return _same_bits(_formed(weights, state, beta), y)


def written_average(
    param: Tensor, written: dict[Tensor, Tensor], state: State, beta: float, training: bool
) -> Tensor | None:
    """The weights that were taken as x, if they still are.

    The parameter then holds them (not ``training``), or a y that tells them or was formed from them.
    """
    weights = written.get(param)
    if weights is None:
        return None
    if not training:
        return weights if _same_bits(param, weights) else None
    made_y = _holds(param, _formed(weights, state, beta))
    return weights if made_y or _holds_average(weights, bits_of_y(param, state), state, beta) else None
