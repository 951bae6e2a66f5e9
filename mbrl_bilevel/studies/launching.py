"""What the scripts share: arguments in, a run folder and its page, one JSON line out, and the exit codes.

0 done, 2 a bad input or an unwritable disk (one line on stderr), 130 stopped, 1 a bug (traceback).
"""

from __future__ import annotations

import errno
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mbrl_bilevel.base.errors import BilevelError
from mbrl_bilevel.base.rows import strict
from mbrl_bilevel.studies.arguments import RunArgs, parse
from mbrl_bilevel.studies.run_folder import RunFolder

R = TypeVar("R", bound=RunArgs)
A = TypeVar("A")


@dataclass(frozen=True)
class Result:
    """What ``main`` gives back: ``metrics`` is written to metrics.json, which marks the run as finished;
    ``summary`` is printed as the last line on stdout, as JSON, with the run's folder under ``out``."""

    metrics: Mapping[str, object]
    summary: Mapping[str, object] = field(default_factory=dict)


def launch(
    args_type: type[R], main: Callable[[R, RunFolder], Result], argv: Sequence[str] | None = None
) -> None:
    """Run a script that fills a run folder: ``if __name__ == "__main__": launch(Args, main)``.

    ``args_type``: the dataclass of the options, a subclass of ``RunArgs``. ``main(args, run)`` does the
    work in the folder ``run``; the name of the run is that of the file ``main`` is in, whose docstring heads
    --help. ``argv``: the options, None takes those of the command line.

    At the end the page of the run (``mbrl_bilevel.pages``) is written beside its rows, unless ``--no-report``,
    and its first table is printed on stderr, unless ``--quiet``.

    A finished run under --resume is not run again: its summary is printed as it was. To save more than rows
    when stopped, ``main`` catches KeyboardInterrupt, saves, and raises it again. Raises SystemExit with the
    exit code unless all went well: 2 for a mistake or an unwritable disk (one line on stderr), 130 for
    Ctrl-C; a bug keeps its traceback.
    """
    with _exit_codes():
        args = parse(args_type, argv, _help(main))
        script = Path(inspect.getfile(main))
        typed = shlex.join(["python", *(sys.argv if argv is None else [script.name, *argv])])
        with RunFolder(script.stem, args, typed) as run:
            summary = run.summary
            if summary is None:
                summary = _run(main, args, run)
        _show(args, run)
        print(json.dumps(summary, allow_nan=False), flush=True)
        if run.failed:
            raise BilevelError(
                f"{run.failed} of the runs failed; try them again with --resume --out {run.path}"
            )


def _show(args: RunArgs, run: RunFolder) -> None:
    """The page of the run and, on stderr, its first table. The run is finished: whatever is wrong with its page
    is told, and does not undo that."""
    page = run.path / "report.html"
    if args.no_report and args.quiet:
        return
    try:
        # Here: they bring in pandas and SciPy, if the run has not done so.
        from mbrl_bilevel.pages.page import write_page
        from mbrl_bilevel.pages.terminal import summary

        width = shutil.get_terminal_size((200, 24)).columns
        table = "" if args.quiet else summary([run.path], width=width)
        if not args.no_report:
            write_page([run.path], page)
    except Exception as error:
        print(
            f"warning: no page: {type(error).__name__}: {error}; the run is finished, scripts/report.py tries again",
            file=sys.stderr,
        )
        return
    if not args.quiet:
        told = [table, "" if args.no_report else f"page: {page}"]
        print("\n\n".join(filter(None, told)), file=sys.stderr, flush=True)


def run_inside(script: str, args: R, main: Callable[[R, RunFolder], Result]) -> dict[str, Any]:
    """Fill the run folder ``args.out`` inside another run, unless it is finished; its metrics.

    Raises what ``main`` raises; the folder then goes on from there under --resume.
    """
    with RunFolder(script, args) as run:
        if run.summary is None:
            if args.wandb:
                run.track()
            result = main(args, run)
            run.finish(result.metrics, result.summary)
        return run.metrics


def launch_tool(
    args_type: type[A],
    main: Callable[[A], Mapping[str, object]],
    argv: Sequence[str] | None = None,
) -> None:
    """Run a script without a run folder (report); ``main`` gives the summary. See launch()."""
    with _exit_codes():
        summary = main(parse(args_type, argv, _help(main)))
        print(json.dumps(strict(summary), allow_nan=False), flush=True)


@contextmanager
def _threads(args: RunArgs) -> Iterator[None]:
    """Within it PyTorch uses --threads CPU threads, or by default as many as its layers are worth."""
    import torch  # once the options are read

    from mbrl_bilevel.base.threads import few_threads

    layers = [
        width for name in ("hidden", "policy_hidden") for width in getattr(args, name, None) or ()
    ]
    with few_threads(max(layers, default=0)):
        if args.threads > 0:
            torch.set_num_threads(args.threads)
        yield


def _help(main: Callable[..., object]) -> str | None:
    module = inspect.getmodule(main)
    return module.__doc__ if module else None


def _run(main: Callable[[R, RunFolder], Result], args: R, run: RunFolder) -> dict[str, object]:
    try:
        if args.wandb:
            run.track()
        with _threads(args):
            result = main(args, run)
        return run.finish(result.metrics, result.summary)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"finished rows kept: {len(run.rows)}; go on with --resume --out {run.path}"
        ) from None
    except BilevelError as error:
        if not len(run.rows):
            raise
        raise BilevelError(
            f"{error} (finished rows kept: {len(run.rows)}; go on with --resume --out {run.path})"
        ) from error
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk names no file
            error.filename = str(run.path)
        raise


_NO_MEMORY = re.compile("can't allocate memory|out of memory")

# What the machine or the user answers for; any other OSError is a bug and keeps its traceback.
_OUTER_ERRORS = {
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EACCES", "EPERM", "ENOENT"),
        *("ENOTDIR", "EISDIR", "EEXIST", "ENAMETOOLONG", "ELOOP", "ESTALE", "EPIPE"),
    )
    if hasattr(errno, name)
}


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Turn what ends the body into one line on stderr and an exit code."""
    # Set even where a shell started us with SIGINT ignored (in the background): a stop is a stop.
    before = {
        number: signal.signal(number, signal.default_int_handler)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough: --help | head
        # What is still to be written at exit has nowhere to go either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None  # as a shell has it: 128 + SIGPIPE
    except KeyboardInterrupt as stop:
        _leave(130, f"stopped: {stop}" if stop.args else "stopped")
    except BilevelError as error:
        _leave(2, f"error: {error}")
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))):
            raise
        _leave(
            2,
            "error: out of memory; ask for less data, fewer members, candidates or smaller layers",
        )
    except OSError as error:
        if error.errno not in _OUTER_ERRORS:
            raise
        place = f": {error.filename}" if error.filename else ""
        _leave(2, f"error: {error.strerror}{place}; check the path, the rights and the free space")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _leave(code: int, line: str) -> None:
    print(" ".join(line.split()), file=sys.stderr, flush=True)
    raise SystemExit(code)
