"""The folder of one run: config, rows, metrics, events, checkpoints; nothing in it is ever lost.

config.json is written first and metrics.json last, both atomically: the latter means "finished".
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar
from uuid import uuid4

from mbrl_bilevel.base.atomic import write_atomically
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.rows import Rows, strict
from mbrl_bilevel.studies.arguments import RunArgs, option_name
from mbrl_bilevel.studies.tracking import WandbRun

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

#: Options that may differ when a run is resumed: they do not change what it computes, but for rounding.
FREE_ON_RESUME = (
    *("out", "resume", "quiet", "no_report", "wandb", "threads", "jobs"),
    *("launcher", "ray_address", "cell_cpus", "cell_gpus", "side_by_side"),
)

#: The environment variable that tells a worker on another machine the commit of the code that it was sent.
SENT_FROM = "MBRL_BILEVEL_COMMIT"

_PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "stable_baselines3", "mbrl_bilevel")
_TRACES = ("config.json", "metrics.json", "summary.json", "rows.jsonl")

T = TypeVar("T")


class Bar(Protocol):
    """What a script may do with a progress bar."""

    def update(self, n: int = 1) -> object: ...
    def set_postfix_str(self, s: str) -> object: ...
    def close(self) -> object: ...


class RunFolder:
    """The folder of one run; ``launch`` makes it and hands it to ``main``. A context manager.

    ``path``: the folder. ``rows``: its finished rows (``Rows``): ``run.rows.find(method="nll", seed=0)`` is
    one of them or None, ``run.rows.append({...})`` saves one. ``failed``: how many cells ended in an error.
    ``checkpoints``, ``figures``: folders inside it, made on first use.
    """

    path: Path
    rows: Rows
    failed: int = 0

    def __init__(self, script: str, args: RunArgs, command: str | None = None) -> None:
        """Start a new run, or go on with the one in ``args.out`` if ``args.resume``.

        ``command``: what was typed to start it, for config.json; None where it was not started by itself.
        Raises InvalidInputError if the folder holds a run that may not be touched, and OSError if
        it cannot be made or written.
        """
        if args.resume and args.out is None:
            raise InvalidInputError("--resume: say which run to go on with: --out DIR")
        self._quiet = args.quiet
        self._bars: list[Bar] = []
        self._tracked: WandbRun | None = None
        self.path, self._made = _make(script, args.out)
        self._lock = _lock(self.path)
        _sweep(self.path)
        self._fresh = not any((self.path / name).exists() for name in _TRACES)
        try:
            if self._fresh:
                if args.resume:  # said even when quiet: a slip in --out must not pass for a resume
                    print(f"{self.path} holds no run yet: starting one", file=sys.stderr)
                self.write_json("config.json", _config(script, args, command))
            elif args.resume:
                if _check_same(self.path, script, args):
                    self._grow(args)
            else:
                raise InvalidInputError(
                    f"--out: {self.path} holds a run already; "
                    "go on with it by --resume, or give another --out"
                )
            self.rows = Rows(self.path / "rows.jsonl")
        except BaseException:
            self.close()
            raise

    def _grow(self, args: RunArgs) -> None:
        """Go by ``args``, which ask for more: what was finished is no longer."""
        # In this order: killed in between, the run is one that was stopped before its end.
        for name in ("metrics.json", "summary.json"):
            (self.path / name).unlink(missing_ok=True)
        config = _read_json(self.path / "config.json")
        self.write_json("config.json", {**config, "args": _options(args)})

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints, made on first use."""
        return self._subfolder("checkpoints")

    @property
    def figures(self) -> Path:
        """The folder of figures, made on first use."""
        return self._subfolder("figures")

    @cached_property
    def tensorboard(self) -> SummaryWriter:
        """TensorBoard events of this run, in the folder itself; closed with the run."""
        # Imported here: it brings in PyTorch, which not every script needs.
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.path))

    def scalar(self, name: str, value: float, step: int) -> None:
        """A point of the curve ``name`` at ``step``: to TensorBoard, and to W&B where the run is tracked."""
        self.tensorboard.add_scalar(name, value, step)
        if self._tracked is not None:
            self._tracked.scalar(name, value, step)

    def track(self) -> None:
        """From here on log to Weights & Biases as well; a run that is resumed goes on there.

        Raises InvalidInputError where W&B refuses.
        """
        config = _read_json(self.path / "config.json")
        identity = config.setdefault("wandb", uuid4().hex[:8])
        self._tracked = WandbRun(self.path, config, identity)
        self.write_json("config.json", config)

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary of a run that is finished; None while it is not, or where cells failed."""
        if not (self.path / "metrics.json").exists():
            return None
        summary = _read_json(self.path / "summary.json")
        return None if summary.get("failed") else summary

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of a run that is finished."""
        return _read_json(self.path / "metrics.json")

    def write_json(self, name: str, document: Mapping[str, object]) -> None:
        """Write strict JSON atomically; see strict() for NaN. Raises OSError."""
        text = json.dumps(strict(document), indent=2, allow_nan=False)
        write_atomically(self.path / name, text.encode() + b"\n")

    def note_config(self, name: str, document: Mapping[str, object]) -> None:
        """Add to config.json what the options came to.

        Raises InvalidInputError on a resume where they come to something else now.
        """
        config, now = _read_json(self.path / "config.json"), strict(document)
        if name not in config:
            self.write_json("config.json", {**config, name: now})
        elif found := _difference(config[name], now):
            raise InvalidInputError(
                f"--resume: {self.path} went by {found}, which is what the options come to now; go on with "
                "the version and on the machine that it was started with, or give another --out"
            )

    def finish(
        self, metrics: Mapping[str, object], summary: Mapping[str, object]
    ) -> dict[str, Any]:
        """Write the metrics, which marks the run as finished; gives the summary back as JSON."""
        failed = {"failed": self.failed} if self.failed else {}
        kept = strict({"out": self.path, **failed, **summary})
        self.write_json("summary.json", kept)
        self.write_json("metrics.json", metrics)
        if self._tracked is not None:
            self._tracked.finish(self.rows, kept, failed=False)
            self._tracked = None
        return kept

    def progress(self, items: Iterable[T], desc: str, total: int | None = None) -> Iterable[T]:
        """The items again, with a bar on stderr unless the run is quiet."""
        return self._bar(desc, iterable=items, total=total)  # type: ignore[no-any-return]

    def bar(self, total: int, desc: str, initial: int = 0) -> Bar:
        """A bar on stderr to be moved by hand: ``bar.update(n)``; closed with the run."""
        return self._bar(desc, total=total, initial=initial)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Finish bars and events, and let others write into the folder."""
        for bar in self._bars:
            bar.close()
        if "tensorboard" in self.__dict__:
            self.tensorboard.close()
        if self._tracked is not None:  # stopped, or ended by an error
            self._tracked.finish(self.rows, None, failed=True)
            self._tracked = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A run refused before it did anything leaves no folder that would refuse the next try.
        if isinstance(error, Exception) and self._fresh:
            for name in ("checkpoints", "figures"):
                with contextlib.suppress(OSError):  # not there, or not empty
                    (self.path / name).rmdir()
        if (
            isinstance(error, Exception)
            and self._fresh
            and os.listdir(self.path) == ["config.json"]
        ):
            (self.path / "config.json").unlink()
            if self._made:
                self.path.rmdir()
        self.close()

    def _subfolder(self, name: str) -> Path:
        (self.path / name).mkdir(exist_ok=True)
        return self.path / name

    def _bar(self, desc: str, **settings: Any) -> Any:
        from tqdm import tqdm

        bar = tqdm(desc=desc, disable=self._quiet, dynamic_ncols=True, **settings)
        self._bars.append(bar)
        return bar


def _make(script: str, out: Path | None) -> tuple[Path, bool]:
    """The folder of the run, and whether it is new."""
    if out is not None:
        new = not out.exists()
        if not new and not out.is_dir():
            raise InvalidInputError(f"--out: {out} is a file; give a folder")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(
                f"--out: {out} cannot be made ({error.strerror}); give a folder you can write to"
            ) from error
        return out, new
    stem = f"runs/{script}-{time.strftime('%Y%m%d-%H%M%S')}"
    for suffix in ("", *(f"-{i}" for i in range(2, 1000))):  # other runs of the same second
        path = Path(stem + suffix)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path, True
    raise InvalidInputError(f"--out: {stem} and its successors exist; give another --out")


def _lock(path: Path) -> int | None:
    """Hold the folder against a second process until this one ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows: go without
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InvalidInputError(
            f"--out: another process is writing to {path}; wait for it, or give another --out"
        ) from None
    except OSError:  # a file system without locks: go without
        os.close(descriptor)
        return None
    return descriptor


def _sweep(path: Path) -> None:
    """Remove what our atomic writes left behind where a kill came in the middle; nothing else."""
    left = [found for name in _TRACES for found in path.glob(f".{name}.[0-9]*.tmp")]
    for file in [*left, *(path / "checkpoints").glob(".*.safetensors.[0-9]*.tmp")]:
        file.unlink(missing_ok=True)


def _config(script: str, args: RunArgs, command: str | None) -> dict[str, object]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "script": script,
        **({} if command is None else {"command": command}),
        "args": _options(args),
        "versions": versions,
        "platform": platform.platform(),
        "git_commit": git_commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _options(args: RunArgs) -> dict[str, Any]:
    return strict({field.name: getattr(args, field.name) for field in fields(args)})


def git_commit() -> str | None:
    """The commit of our own checkout; None if there is none, whatever checkout lies around it. Where this code was
    sent to another machine, the commit of the checkout that it came from."""
    root = Path(__file__).resolve().parents[2]
    if SENT_FROM in os.environ:
        return os.environ[SENT_FROM] or None
    command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    top, _, commit = answer.stdout.strip().rpartition("\n")
    return commit if Path(top).resolve() == root else None


def _check_same(path: Path, script: str, args: RunArgs) -> bool:
    """Refuse to go on with a run that was started with other options; whether ``args`` ask for more of the
    same (``RunArgs.grows``)."""
    config = _read_json(path / "config.json")
    if config.get("script") != script:
        raise InvalidInputError(
            f"--resume: {path} holds a run of {config.get('script')!r}, not of {script!r}; "
            "give another --out"
        )
    then, now = config.get("args"), _options(args)
    if not isinstance(then, dict):
        raise InvalidInputError(f"{path / 'config.json'}: it has no args; give another --out")
    then = {args.renamed.get(name, name): value for name, value in then.items()}
    # A run that was started before there was some option went by what is its default now.
    defaults = {f.name: f.default for f in fields(args) if f.default is not MISSING}
    then = strict(defaults) | then
    grown = False
    for name in [*now, *(name for name in then if name not in now)]:
        if name in args.grows and type(then.get(name)) is int and now[name] > then[name]:
            grown = True
            continue
        if name in FREE_ON_RESUME or (name in then and name in now and then[name] == now[name]):
            continue
        raise InvalidInputError(
            f"--resume: {path} was started with {_said(name, then)}, now it is {_said(name, now)}; "
            "give the same options, or another --out"
        )
    return grown


def _difference(then: object, now: object, place: str = "") -> str | None:
    """The first value that differs, as ``planner.horizon 3, not 5``; None if all are the same."""
    if not (isinstance(then, dict) and isinstance(now, dict)):
        if then == now:
            return None
        return f"{place} {json.dumps(then)}, not {json.dumps(now)}".strip()
    names = [*now, *(name for name in then if name not in now)]
    inside = (_difference(then.get(n), now.get(n), f"{place}.{n}".strip(".")) for n in names)
    return next(filter(None, inside), None)


def _said(name: str, options: dict[str, Any]) -> str:
    option = option_name(name)
    return f"{option} {json.dumps(options[name])}" if name in options else f"no {option}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise InvalidInputError(
            f"--resume: {path} is missing; without it the run cannot go on: give another --out"
        ) from None
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise InvalidInputError(f"--resume: {path} is damaged; restore it, or give another --out")
    return document
