"""The options that say where the cells of a study run, and the launcher that they come to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.studies.arguments import RunArgs, option_name

if TYPE_CHECKING:
    from mbrl_bilevel.studies.cells import Launcher


@dataclass(frozen=True, kw_only=True)
class LauncherOptions:
    """Where cells run, for options that are no ``RunArgs``; these take ``LauncherArgs``."""

    jobs: int = 1
    """Cells at a time on this machine, a process each, with one thread; the rows are the same whatever their
    number."""
    launcher: Literal["local", "ray"] = "local"
    """local: processes on this machine; ray: a Ray cluster (needs the extra [ray]). The rows are the same."""
    ray_address: str | None = None
    """HOST:PORT of the Ray cluster that this machine is part of, or auto; none: Ray is started here for --jobs cells
    at a time, and ended with the run."""
    cell_cpus: float = 1.0
    """CPUs that --launcher ray keeps for each cell."""
    cell_gpus: float = 0.0
    """GPUs that --launcher ray keeps for each cell, such as 0.25; 0: it sees none."""

    def check_launcher(self) -> None:
        """Raises InvalidInputError for values out of range, and options that the launcher would ignore."""
        default = {field.name: field.default for field in fields(self)}
        if not 1 <= self.jobs <= 100_000:
            raise InvalidInputError(
                f"--jobs must be at least 1 and at most 100,000; got {self.jobs}"
            )
        for name, least in (("cell_cpus", 0.01), ("cell_gpus", 0.0)):
            value = getattr(self, name)
            if not least <= value <= 1024:
                raise InvalidInputError(
                    f"{option_name(name)} must be at least {least:g} and at most 1,024; got {value}"
                )
            if value > 1 and value % 1:
                raise InvalidInputError(
                    f"{option_name(name)} above 1 must be a whole number, as Ray counts them; got {value}"
                )
        if self.launcher == "local":
            for name in ("ray_address", "cell_cpus", "cell_gpus"):
                if getattr(self, name) != default[name]:
                    raise InvalidInputError(
                        f"{option_name(name)} is of --launcher ray, local would ignore it: leave it out"
                    )
        elif self.ray_address is not None and self.jobs != default["jobs"]:
            raise InvalidInputError(
                "--jobs: on a cluster Ray runs as many cells as --cell-cpus and --cell-gpus leave room for; "
                "leave --jobs out"
            )

    def launching(self) -> Launcher:
        """The launcher that these options ask for, for ``run_cells``."""
        if self.launcher == "local":
            from mbrl_bilevel.studies.local_cells import local

            return local(self.jobs)
        from mbrl_bilevel.studies.ray_cells import RayCluster, on_ray

        cpus = math.ceil(self.jobs * self.cell_cpus)
        return on_ray(RayCluster(self.ray_address, self.cell_cpus, self.cell_gpus, cpus))


#: The launcher's options as they are when none is given: of a cell, which is a run of its own.
HERE: Mapping[str, Any] = {field.name: field.default for field in fields(LauncherOptions)}


@dataclass(frozen=True, kw_only=True)
class LauncherArgs(LauncherOptions, RunArgs):
    """Options of a run that is made of cells (``run_cells``): ``RunArgs``, and where the cells run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_launcher()
