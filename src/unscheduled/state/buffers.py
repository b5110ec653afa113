"""The buffers of a parameter's state, stored as float32 or narrow.

| stored as | what | bytes a number |
|---|---|---|
| ``float32`` | any buffer | 4 |
| ``int16``, a scale for each block | the gap, a first moment: multiples of 1/32767 of the block's largest | 2.03 |
| ``uint8``, two ends for each block | a second moment: 256 values between the ends, even in the logarithm | 1.06 |
| ``int16`` beside a parameter of 16 bits | y: the bits of float32 beyond those of the parameter (split weights) | 2 |
"""

from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from unscheduled.state.quantization import BLOCK, DECODE, ENCODE, NEAREST, is_narrow
from unscheduled.state.split_weights import joined

State: TypeAlias = dict[str, Any]

StatePrecision: TypeAlias = Literal["float32", "compact"]


def check_precision(state_precision: str, params: Iterable[Tensor], rule_is_compact: bool) -> None:
    """Raise ValueError unless the buffers of a rule and of these parameters can have this precision."""
    has = "'float32' or 'compact'" if rule_is_compact else "'float32'"
    if state_precision not in ("float32", "compact"):
        raise ValueError(f"state_precision = {state_precision!r} is unknown: use {has}")
    if state_precision == "compact":
        if not rule_is_compact:
            raise ValueError("state_precision = 'compact' is not there for this rule: use 'float32'")
        for param in params:
            if hasattr(param, "to_local") or param.dtype not in (torch.float32, torch.bfloat16, torch.float16):
                kind = "sharded" if hasattr(param, "to_local") else param.dtype
                raise ValueError(
                    "state_precision = 'compact' is for whole parameters of float32, bfloat16 and float16, but one is "
                    f"{kind}: use 'float32'"
                )


def fresh_buffer(param: Tensor, name: str, dtype: torch.dtype) -> State:
    """A buffer of zeros by its name, with its scales if it is narrow."""
    buffer = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
    if dtype not in DECODE:
        return {name: buffer}
    blocks = -(-param.numel() // BLOCK)
    shape = (blocks,) if dtype == torch.int16 else (blocks, 2)
    return {name: buffer, f"{name}_scale": torch.zeros(shape, dtype=torch.float32, device=param.device)}


def wide(state: State, name: str) -> Tensor:
    """A buffer in the precision of the arithmetic; the same tensor if it is stored in that precision."""
    buffer: Tensor = state[name]
    decode = DECODE.get(buffer.dtype)
    return decode(buffer, state[f"{name}_scale"]) if decode else buffer


def store(state: State, name: str, values: Tensor, rounding: Tensor | int = NEAREST) -> None:
    """Put float32 numbers into a buffer; codes are rounded with ``rounding``, by default to the nearest."""
    buffer: Tensor = state[name]
    encode = ENCODE.get(buffer.dtype)
    if encode:
        if values.stride() != buffer.stride():  # codes are made in the order of memory
            values = torch.empty_like(buffer, dtype=torch.float32).copy_(values)
        encode(values, buffer, state[f"{name}_scale"], rounding)
    elif buffer is not values:
        buffer.copy_(values)


def wide_state(state: State) -> State:
    """A saved state with all its buffers and y in the precision of the arithmetic."""
    state = with_whole_y(state)
    names = names_of_buffers(state)
    return {name: wide(state, name) if has_codes(state, name) else state[name] for name in state if name in names}


def with_whole_y(state: State) -> State:
    """A saved state with y as one tensor; beside parameters of 16 bits y is saved as two."""
    if "low" not in state or "y" not in state:
        return state
    whole = {name: value for name, value in state.items() if name != "low"}
    return whole | {"y": joined(state["y"], state["low"])}


def names_of_buffers(state: State) -> set[str]:
    """The names of the entries of a state, without scales."""
    return set(state) - {f"{name}_scale" for name in state if has_codes(state, name)}


def scale_names(states: Iterable[State]) -> list[str]:
    """The names of the scales in these states."""
    return sorted({f"{name}_scale" for state in states for name in state if name != "low" and has_codes(state, name)})


def has_codes(state: State, name: str) -> bool:
    """Whether a buffer is stored as codes."""
    return isinstance(state.get(name), Tensor) and is_narrow(state[name].dtype)


def restored(state: State, name: str, dtype: torch.dtype, like: Tensor) -> State:
    """A copy of a loaded buffer with this dtype, on the device and in the layout of the parameter ``like``.

    Codes of the same dtype and layout are copied; other buffers are decoded and rounded to the nearest.
    """
    buffer: Tensor = state[name]
    if dtype == buffer.dtype and is_narrow(dtype) and buffer.stride() == torch.empty_like(like, device="meta").stride():
        scales: Tensor = state[f"{name}_scale"]
        return {name: buffer.to(like.device, copy=True), f"{name}_scale": scales.to(like.device).clone().contiguous()}
    target = fresh_buffer(like, name, dtype)
    store(target, name, wide(state, name).to(like.device))
    return target
