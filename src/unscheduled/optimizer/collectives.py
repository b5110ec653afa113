"""The only collectives, over all processes that train one model: none of them is called for a switch between the modes.

There are those of DTensors whose whole is needed (the matrices of Muon, the norm of the gaps), those of the distance
step, for its sums, and those of the Polyak step, for its sums and its loss:

- Plain parameters (one process, or DDP, where the processes hold the same ones): the sums are here already, and the
  loss is averaged over the default process group.
- DTensors (FSDP2, HSDP, tensor parallelism): the sums of a shard are added up over the dimensions of its mesh that it
  is sharded over, and the loss is averaged over the whole mesh.

In the end every process has the same numbers, bit for bit. If the sums of plain parameters, or of whole meshes, are not
the same in all processes, they have no gradient in common, and are refused.
"""
# torch leaves some of its functions without types:
# pyright: reportUnknownMemberType=false

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch import distributed as dist


class Sharding(NamedTuple):
    """How a tensor lies on the processes: a mesh, or None, and the dimensions of the mesh that it is sharded over."""

    mesh: Any = None
    dimensions: tuple[int, ...] = ()


WHOLE = Sharding()
DIFFERENCE = 1e-3  # of the sums of processes, relative to the largest; the same gradients have the same sums


def local(tensor: Tensor) -> tuple[Tensor, Sharding]:
    """The part of a tensor that this process has, and how the whole lies on the processes.

    A DTensor is added up over the processes, so all of them have to call this.
    """
    if type(tensor) is Tensor or not dist.is_available():
        return tensor, WHOLE
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor, WHOLE
    total = _added_up(tensor)
    sharded = (index for index, placement in enumerate(total.placements) if not placement.is_replicate())
    return total.to_local(), Sharding(total.device_mesh, tuple(sharded))


def _added_up(tensor: Any) -> Any:
    """A DTensor whose sums over the processes are made: gradients of replicated parameters can be left as summands."""
    from torch.distributed.tensor import Replicate

    placements = [Replicate() if placement.is_partial() else placement for placement in tensor.placements]
    return tensor if placements == list(tensor.placements) else tensor.redistribute(placements=placements)


def whole(number: Tensor) -> Tensor:
    """A number that may be a DTensor, as those of losses and norms are, reduced over its mesh."""
    return cast(Any, number).full_tensor() if _mesh(number) is not None else number


def as_float(number: float | Tensor) -> float:
    """The same of a number that need not be a tensor."""
    return float(whole(number) if isinstance(number, Tensor) else number)


def _mesh(tensor: Tensor) -> Any:
    """That of a DTensor, else None."""
    return getattr(tensor, "device_mesh", None)


def of_whole(function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """What a function makes of a whole tensor, in the same shape: if it is sharded, all processes compute all of it."""
    mesh = _mesh(tensor)
    if mesh is None:
        return function(tensor)
    from torch.distributed.tensor import DTensor, Replicate

    sharded, everywhere = _added_up(tensor), [Replicate()] * mesh.ndim
    result = DTensor.from_local(function(sharded.full_tensor()), mesh, everywhere, run_check=False)
    return result.redistribute(placements=sharded.placements)


def norm(tensors: Iterable[Tensor]) -> float:
    """The Euclidean norm of tensors, of whose shards the processes have to call it together."""
    norms: dict[Sharding, list[float]] = {}
    devices: dict[Sharding, torch.device] = {}
    for tensor in tensors:
        part, sharding = local(tensor)
        devices[sharding] = part.device
        norms.setdefault(sharding, []).append(float(cast(Any, part).norm()))
    for sharding, parts in norms.items():
        if sharding.dimensions:
            square = torch.tensor(math.hypot(*parts), dtype=torch.float64, device=devices[sharding]).square()
            norms[sharding] = [math.sqrt(float(summed(square, sharding)))]
    return math.hypot(*(part for parts in norms.values() for part in parts))


def summed(vector: Tensor, sharding: Sharding) -> Tensor:
    """The sum of the vectors of all shards, in place."""
    for dimension in sharding.dimensions:
        dist.all_reduce(vector, group=sharding.mesh.get_group(dimension))
    return vector


def added_up(sums: Mapping[Sharding, Tensor], partitioned: bool = False) -> Tensor:
    """The sums over the shards of all processes, on the device of the first.

    Args:
        sums: for each sharding, a vector of sums over the local parts of the tensors that lie so.
        partitioned: whether each process of the default group has other plain parameters.
    """
    if partitioned and WHOLE in sums and dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums[WHOLE])
    vectors = [summed(vector, sharding) for sharding, vector in sums.items()]
    return torch.stack([vector.to(vectors[0].device) for vector in vectors]).sum(0)


def totals(sums: Mapping[Sharding, Tensor], loss: float, all_processes: bool) -> list[float]:
    """The mean loss, and the sums over the shards of all processes.

    Args:
        sums: for each sharding, a vector of sums over the local parts of the tensors that lie so.
        loss: the loss of this process.
        all_processes: whether the processes of the default group train one model, if the parameters are plain.

    Raises:
        ValueError: if the processes have other sums, as of other parameters, or of gradients that are not reduced.
    """
    meshes = [sharding.mesh for sharding in sums if sharding.mesh is not None]
    total = added_up(sums)
    together = torch.cat([total.new_tensor([loss]), total])
    if meshes:
        mesh = max(meshes, key=lambda mesh: mesh.ndim)
        groups = [mesh.get_group(dimension) for dimension in range(mesh.ndim)]
    elif all_processes and dist.is_available() and dist.is_initialized():
        groups = [dist.group.WORLD]
    else:
        groups = []
    for group in groups:
        if (size := dist.get_world_size(group)) > 1:
            dist.all_reduce(together, group=group)
            together /= size
    numbers = cast("list[float]", torch.cat([together, total]).tolist())
    everywhere, here = numbers[: len(together)], numbers[len(together) :]
    tolerance = DIFFERENCE * max(map(abs, here))
    if any(abs(mean - own) > tolerance for mean, own in zip(everywhere[1:], here, strict=True)):
        raise ValueError(
            "all_processes = True, but the processes have different gradients: reduce them, as DistributedDataParallel "
            "and fully_shard do; ZeRO, FSDP1 and pipelines, whose processes have other parameters each, cannot have "
            "PolyakStep; if each process trains a model of its own, give PolyakStep(all_processes=False)"
        )
    return everywhere
