"""The backends that execute runs through joblib: the cores of this machine, a Dask cluster or a Ray cluster."""
# joblib, dask and ray have no types:
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportMissingImports=false

import importlib.util
import logging
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

from joblib import Parallel, cpu_count, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError

from unscheduled.lab.task import RaceError

BACKENDS = ("loky", "dask", "ray")
LIBRARIES = {"dask": "distributed", "ray": "ray"}


@dataclass(frozen=True)
class Backend:
    """A backend of joblib that executes runs side by side.

    Args:
        name: ``loky`` (processes of this machine), ``dask`` or ``ray``. Dask and Ray use the cluster that their own
            settings name (``DASK_SCHEDULER_ADDRESS``, ``RAY_ADDRESS``), else a new one of ``jobs`` workers here.
        jobs: how many runs are executed at once, an integer >= 1.

    Raises:
        RaceError: if ``jobs`` is out of its range, or the library of the backend is not installed.
    """

    name: str = "loky"
    jobs: int = 1

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise RaceError(f"--jobs {self.jobs}: want an integer >= 1")
        library = LIBRARIES.get(self.name)
        if library is not None and importlib.util.find_spec(library) is None:
            raise RaceError(f"--backend {self.name} needs {library}: pip install 'unscheduled[{self.name}]'")

    @property
    def local(self) -> bool:
        """Whether the workers are child processes of this process."""
        return self.name == "loky"

    @contextmanager
    def started(self) -> Generator[None, None, None]:
        """Connect to the cluster of the backend, if it has one, for the ``with`` block in which ``run`` is called."""
        with self._client(), parallel_config(backend=self.name):
            yield

    def run(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield the result of the function for each of these arguments, in the order in which the calls end.

        With Ray all results come together, after the last call.
        """
        if not arguments:
            return
        return_as = "list" if self.name == "ray" else "generator_unordered"
        parallel = Parallel(n_jobs=min(self.jobs, len(arguments)), return_as=return_as)
        with interrupts_ignored():  # workers that start here ignore Ctrl-C for good: this process handles it
            finished = parallel(delayed(function)(*each) for each in arguments)
        try:
            yield from cast("Iterable[Any]", finished)
        except TerminatedWorkerError as error:
            raise RaceError("a worker was killed, perhaps because memory ran out: give fewer --jobs") from error

    def _client(self) -> Any:
        if self.name == "dask":
            from dask import config
            from dask.distributed import Client

            if config.get("scheduler-address", None):
                return Client()
            return Client(n_workers=self.jobs, threads_per_worker=1, silence_logs=logging.ERROR)
        if self.name == "ray":
            import ray
            from ray.util.joblib import register_ray

            register_ray()
            return ray.init(num_cpus=self.jobs, ignore_reinit_error=True, log_to_driver=False)
        return nullcontext()


def all_cores() -> int:
    """The number of cores that this process may use."""
    return cpu_count()


@contextmanager
def interrupts_ignored() -> Generator[None, None, None]:
    """Ignore Ctrl-C within the ``with`` block; processes that are started within it ignore Ctrl-C for good."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
