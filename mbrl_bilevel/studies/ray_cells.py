"""Cells of a study on a Ray cluster: Ray places them, this process keeps their rows and their folders.

No disk is shared. Rows come back as return values. The files of a cell with a folder come through a queue while they
change, so that a cell whose worker is lost goes on elsewhere from its last checkpoint. Modules that are not
installed, a user's own among them, are sent to the workers.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mbrl_bilevel.base.errors import BilevelError, InvalidInputError
from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.studies.cell_folder import Change, moved, posting, whole
from mbrl_bilevel.studies.cells import Cells, Done, Launcher, Outcome, attempt, killed, one_thread
from mbrl_bilevel.studies.run_folder import SENT_FROM, git_commit

#: How often a cell is tried again whose worker was lost.
RETRIES = 3

#: Seconds that the address of a cluster has to answer.
_PATIENCE = 5.0

#: Bytes of Ray's object store where we start Ray; more goes to its files.
_STORE = 256 * 2**20


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster, and what of it a cell needs.

    ``address``: HOST:PORT of its head, or "auto" for the one that this machine is part of; None: Ray is started on
    this machine with ``local_cpus`` CPUs. ``cell_cpus``, ``cell_gpus``: what Ray keeps for each cell.
    """

    address: str | None = None
    cell_cpus: float = 1.0
    cell_gpus: float = 0.0
    local_cpus: int = 1


def on_ray(cluster: RayCluster) -> Launcher:
    """Run cells on ``cluster``. Raises InvalidInputError, when used, if Ray is not installed, if nothing answers at
    the address, and if no machine has what a cell needs."""
    return Launcher(partial(_outcomes, cluster), partial(_session, cluster))


@contextmanager
def _session(cluster: RayCluster) -> Iterator[None]:
    """Connected to Ray. A connection that was there is used, and left."""
    try:
        import ray
    except ImportError:
        raise InvalidInputError(
            "--launcher ray: Ray is not installed; pip install 'mbrl-bilevel[ray]', or leave --launcher out"
        ) from None
    if ray.is_initialized():
        yield
        return
    _connect(ray, cluster)
    try:
        _require_room(ray, cluster)
        yield
    finally:
        ray.shutdown()


def _connect(ray: Any, cluster: RayCluster) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if cluster.address is None:
        place: dict[str, Any] = {
            "address": "local",
            "num_cpus": cluster.local_cpus,
            "object_store_memory": _STORE,
            "include_dashboard": False,
        }
    else:
        _require_answer(cluster.address)
        place = {"address": cluster.address}
    variables = {"OMP_NUM_THREADS": "1", SENT_FROM: git_commit() or ""}
    environment = {"py_modules": _own_modules(), "env_vars": variables}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**place, runtime_env=environment, logging_level="ERROR", log_to_driver=False)
    except Exception as error:  # Ray raises bare ones, too
        raise _unreachable(cluster, " ".join(str(error).split())[:200]) from error
    finally:
        # Ray takes it for itself; ours ends a run as Ctrl-C does.
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, handler)


def _require_answer(address: str) -> None:
    """Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise InvalidInputError(
            f"--ray-address must be HOST:PORT, as ray start prints it, or auto; got {address!r}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise InvalidInputError(
            f"--ray-address {address}: nothing answers there ({error}); start Ray there with ray start --head, or "
            "give the address that it printed"
        ) from None


def _unreachable(cluster: RayCluster, why: str) -> BilevelError:
    if cluster.address is None:
        return BilevelError(f"--launcher ray: Ray did not start on this machine: {why}")
    return InvalidInputError(
        f"--ray-address {cluster.address}: no cluster that this machine is part of ({why}); join it with "
        f"ray start --address={cluster.address}, or give another"
    )


def _require_room(ray: Any, cluster: RayCluster) -> None:
    """Ray itself would wait for a machine that can take a cell, for ever."""
    wanted = {"CPU": cluster.cell_cpus, "GPU": cluster.cell_gpus}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(have.get(n, 0.0) >= count for n, count in wanted.items()) for have in machines):
        return
    most = {n: max((have.get(n, 0.0) for have in machines), default=0.0) for n in wanted}
    raise InvalidInputError(
        f"--cell-cpus {cluster.cell_cpus:g} --cell-gpus {cluster.cell_gpus:g}: no machine of the cluster has that "
        f"much; at most {most['CPU']:g} CPUs and {most['GPU']:g} GPUs are there: ask for less"
    )


def _own_modules() -> list[str]:
    """Files and folders of the imported modules that are installed nowhere: this package in a checkout, the
    scripts, a study's own file's neighbours, what --import-module named."""
    paths = sysconfig.get_paths()
    installed = [Path(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    found = set()
    for name, module in list(sys.modules.items()):
        if "." in name or name == "__main__" or getattr(module, "__file__", None) is None:
            continue
        path = Path(str(module.__file__))
        path = path.parent if path.name == "__init__.py" else path
        known = path.is_dir() or path.suffix == ".py"
        if known and path.exists() and not any(path.is_relative_to(place) for place in installed):
            found.add(str(path))
    return sorted(found)


@dataclass(frozen=True)
class _Errand:
    """One try at a cell, as its worker is told of it. ``number``: of the try, 0 the first; ``folders``: that the cell
    fills, inside ``home``."""

    index: int
    number: int
    cwd: Path
    home: Path
    folders: Sequence[str]


def _outcomes(
    cluster: RayCluster, args: Any, cells: Cells[Any], todo: Sequence[Row]
) -> Generator[tuple[Row, Outcome]]:
    import ray
    from ray import exceptions

    lost_worker = (
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.OutOfMemoryError,
        exceptions.ObjectLostError,
    )
    # A run in a folder tells the memory that its process took: it has one of its own. One that has used a GPU
    # frees its memory by ending.
    run = ray.remote(
        num_cpus=cluster.cell_cpus,
        num_gpus=cluster.cell_gpus,
        max_retries=0,
        max_calls=1 if cells.folder is not None or cluster.cell_gpus else 0,
    )(_run)
    post = None if cells.folder is None else _queue(ray)
    common = ray.put((cells.work, args))
    running: dict[Any, _Errand] = {}
    losses: Counter[int] = Counter()

    def start(index: int) -> None:
        errand = _errand(args, cells, todo[index], index, losses[index])
        running[run.remote(common, todo[index], errand, _so_far(errand), post)] = errand

    try:
        for index in range(len(todo)):
            start(index)
        while running:
            ended, _ = ray.wait(list(running), timeout=1.0)
            if post is not None:
                _collect(post, list(running.values()))
            for reference in ended:
                index = running.pop(reference).index
                try:
                    outcome, told = ray.get(reference)
                    sys.stderr.write(told)
                except lost_worker as error:
                    losses[index] += 1
                    _tell_lost(todo[index], error)
                    if losses[index] <= RETRIES:
                        start(index)
                        continue
                    outcome = killed()
                except exceptions.RuntimeEnvSetupError as error:
                    why = " ".join(str(error).split())[:300]
                    raise BilevelError(f"--launcher ray: a worker did not start: {why}") from error
                yield todo[index], outcome
    finally:
        with suppress(exceptions.RayError):  # if Ray itself is lost, that is what is told
            for reference in running:
                ray.cancel(reference, force=True)
            if post is not None:
                _collect(post, list(running.values()))
                post.shutdown(force=True)


def _tell_lost(key: Row, error: Exception) -> None:
    name = " ".join(str(value) for value in key.values())
    print(f"lost: {name}: its worker is gone ({type(error).__name__})", file=sys.stderr, flush=True)


def _errand(args: Any, cells: Cells[Any], key: Row, index: int, number: int) -> _Errand:
    home = Path() if args.out is None else args.out
    return _Errand(index, number, Path.cwd(), home, cells.folders(key))


def _so_far(errand: _Errand) -> list[Change]:
    """What the cell's folders hold here: of a try before this one, or of a run that goes on."""
    return [whole(errand.home / name) for name in errand.folders]


def _queue(ray: Any) -> Any:
    """Where workers post what changes in their cells' folders; it lives on this machine, whatever else is lost."""
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(maxsize=8, actor_options={"num_cpus": 0, "scheduling_strategy": here})


def _collect(post: Any, running: Sequence[_Errand]) -> None:
    """Write what was posted into the cells' folders here; not what a worker that passed for lost still sends."""
    tries = {(errand.index, errand.number): errand for errand in running}
    while count := post.qsize():
        for which, name, change in post.get_nowait_batch(count):
            errand = tries.get(which)
            if errand is not None:
                change.apply(errand.home / name)


def _run(
    common: tuple[Callable[[Any, Row], Done], Any],
    key: Row,
    errand: _Errand,
    so_far: Sequence[Change],
    post: Any,
) -> tuple[Outcome, str]:
    """One cell, on its worker; and what it wrote on stderr."""
    work, args = common
    one_thread()
    with suppress(OSError):  # on another machine there may be none: paths are then to be absolute
        os.chdir(errand.cwd)
    with redirect_stderr(io.StringIO()) as told:
        if not errand.folders:
            return attempt(work, args, key), told.getvalue()
        with _folders_of(errand, so_far, post) as home:
            outcome = attempt(work, replace(args, out=home), key)
    return outcome, told.getvalue()


@contextmanager
def _folders_of(errand: _Errand, so_far: Sequence[Change], post: Any) -> Iterator[Path]:
    """A folder of this machine in place of ``errand.home``; what is written into the cell's own inside it is posted."""
    with tempfile.TemporaryDirectory(prefix="cell-") as place, ExitStack() as watched:
        home = Path(place).resolve()

        def send(name: str, change: Change) -> None:
            post.put(((errand.index, errand.number), name, moved(change, home, errand.home)))

        for name, before in zip(errand.folders, so_far, strict=True):
            before.apply(home / name)
            watched.enter_context(posting(home / name, partial(send, name)))
        yield home
