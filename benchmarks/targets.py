"""The targets: bounds on numbers of the record. A missed target is reported and raises no error."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from benchmarks.contenders import FUSED, SCHEDULEFREE

Record = Mapping[str, Any]
Found = Mapping[str, Any] | float | None
"""The quartiles of many values, a single value, or None if it was not measured."""

ADAMW, COMPACT, SGD = "unscheduled AdamW fused", "unscheduled AdamW compact", "unscheduled SGD fused"
LIMITS = ("stream (Numba)", "stream (torch)")


class Target(NamedTuple):
    """A number of the record and its bound: the largest value, or the least value if ``least`` is True."""

    what: str
    bound: float
    find: Callable[[Record], Found]
    least: bool = False

    def record(self, record: Record) -> dict[str, Any]:
        """The target with the measured value and whether it holds (None if it was not measured)."""
        found = self.find(record)
        value, disturbed = (found["median"], found["disturbed"]) if isinstance(found, Mapping) else (found, False)
        holds = None if value is None else value >= self.bound if self.least else value <= self.bound
        return {
            "what": self.what,
            "bound": f"{'≥' if self.least else '≤'} {self.bound:g}",
            "measured": value,
            "disturbed": disturbed,
            "holds": holds,
        }


def _ratio(of: str, to: str, workload: str, record: Record) -> Found:
    for race in record["races"]:
        if race["part"] == "workloads" and race["workload"] == workload:
            for ratio in race["ratios"]:
                if (ratio["of"], ratio["to"]) == (of, to):
                    return ratio
    return None


def _limit(record: Record) -> Found:
    """The ratio of the limit, which is the faster one of the two streams."""
    found = [ratio for limit in LIMITS if isinstance(ratio := _ratio(limit, ADAMW, "big", record), Mapping)]
    return min(found, key=lambda ratio: ratio["median"], default=None)


def _at(record: Record, *keys: str) -> Any:
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _entry(*keys: str) -> Callable[[Record], Found]:
    return lambda record: _at(record, *keys)


def _switches(record: Record) -> Found:
    """The time of both switches together, divided by the time of a copy of the parameters."""
    found = _at(record, "switching", "seconds")
    if found is None:
        return None
    copies = (found["eval"]["median"] + found["train"]["median"]) / found["copy"]["median"]
    disturbed = any(found[name]["disturbed"] for name in ("eval", "train", "copy"))
    return {"median": round(copies, 2), "disturbed": disturbed}


def _milliseconds(record: Record) -> Found:
    found = _at(record, "start", "import")
    return None if found is None else {**found, "median": round(1000.0 * found["median"], 1)}


def _numba(record: Record) -> Found:
    imports = _at(record, "start", "imports_numba")
    return None if imports is None else float(imports)


def _by(of: str, to: str, workload: str, bound: float) -> Target:
    return Target(f"{of} ÷ {to}, {workload}", bound, partial(_ratio, of, to, workload))


TEN_SMALL = ("ten-small 100k", "ten-small 300k", "ten-small 1M", "ten-small 3M")
TARGETS = (
    _by(ADAMW, FUSED["AdamW"], "big", 1.05),
    _by(ADAMW, FUSED["AdamW"], "resnet", 0.92),
    _by(ADAMW, FUSED["AdamW"], "small", 0.40),
    *(_by(ADAMW, FUSED["AdamW"], workload, 0.8) for workload in TEN_SMALL),
    _by(SGD, FUSED["SGD"], "big", 1.05),
    _by(SGD, FUSED["SGD"], "resnet", 1.0),
    _by(SGD, FUSED["SGD"], "small", 0.75),
    _by(ADAMW, SCHEDULEFREE["AdamW"], "big", 0.25),
    _by(ADAMW, SCHEDULEFREE["AdamW"], "resnet", 0.25),
    _by(ADAMW, SCHEDULEFREE["AdamW"], "small", 0.22),
    _by(COMPACT, FUSED["AdamW"], "big", 0.8),
    Target(f"stream ÷ {ADAMW}, big", 0.85, _limit, least=True),
    Target(
        "extra memory of a step, share of the parameters", 0.01, _entry("memory", ADAMW, "extra_share_of_parameters")
    ),
    Target("extra memory of a step, compact", 0.01, _entry("memory", COMPACT, "extra_share_of_parameters")),
    Target("state, bytes per parameter", 8.0, _entry("memory", ADAMW, "state_bytes_per_parameter")),
    Target("state, bytes per parameter, compact", 3.3, _entry("memory", COMPACT, "state_bytes_per_parameter")),
    Target("import after torch, ms", 50.0, _milliseconds),
    Target("import loads Numba (1 is yes)", 0.0, _numba),
    Target("eval() and train() ÷ copy of the parameters", 8.0, _switches),
)
