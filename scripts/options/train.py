"""The options of train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mbrl_bilevel.base.errors import InvalidInputError, look_up
from mbrl_bilevel.studies.arguments import naming
from mbrl_bilevel.studies.launchers import LauncherArgs
from options.from_settings import Part, Place, require_settings_in_range, with_settings
from options.shared import (
    MODEL_IS_METHOD,
    EpisodeArgs,
    require_device,
    require_methods,
)

#: What an agent without that part would say to an option of it.
WITHOUT: dict[Part, str] = {
    "model": "has no model",
    "plan": "makes no plans",
    "imagined": "imagines no rows",
    "learner": "has no learner",
}


def _of(*parts: Part, place: Place | None = None, default: bool | None = None) -> Any:
    """An option of these parts of an agent: None takes the preset's value. ``place``: where its value goes, behind
    "learner" among the learner's arguments."""
    places = () if place is None else (place,)
    return field(default=default, metadata={"parts": parts, "places": places})


def _learner(*place: str) -> Any:
    """An option that is an argument of the learner, at that place among them."""
    return _of("learner", place=("learner", *place))


def label_of(agent: str, method: str | None) -> str:
    """What acts, in a figure."""
    return agent if agent == "sac" else f"{agent}, {method or 'bilevel'}"


@dataclass(frozen=True, kw_only=True)
class Start(EpisodeArgs):
    """What acts, where and for how long."""

    renamed: ClassVar[Mapping[str, str]] = MODEL_IS_METHOD
    grows: ClassVar[tuple[str, ...]] = ("steps",)

    env_id: str = "Reacher-v5"
    """Gymnasium environment with Box observations and bounded Box or Discrete actions."""
    agent: Literal["planning", "mpc", "mbpo", "sac"] = "planning"
    """What acts: planning plans with its policy in the learned model; mpc plans without a policy; mbpo has a
    policy that learns from real and imagined steps; sac is the learner alone, without a model."""
    preset: str = "auto"
    """Settings to start from, of planning and sac: auto takes the file of the environment, or a default
    chosen from its spaces and time limit; none takes the agent's own defaults; or the name of a file, such as
    HalfCheetah-v5. Every option given wins over it."""
    learner: Literal["fast-sac", "sac", "td3", "ddpg", "dqn", "tqc", "crossq"] | None = None
    """The off-policy learner: fast-sac is ours, sac td3 ddpg dqn are Stable-Baselines3's, tqc and crossq
    sb3-contrib's; none: fast-sac, of discrete actions dqn."""
    steps: int = 3000
    """Real environment steps. With --resume a finished run goes on to more: its agent as it is, schedules by the
    new end."""
    eval_every: int = 500
    """Real steps between evaluations; the episode under way is cut there."""
    eval_episodes: int = 5
    """Episodes of an evaluation, by plan and again by policy where an agent has both."""


if TYPE_CHECKING:

    class _WithSettings(Start):
        """``Start`` and a field for each value in ``PlanningSettings``."""

        def __getattr__(self, name: str) -> Any: ...

else:
    _WithSettings = with_settings(Start)


@dataclass(frozen=True, kw_only=True)
class Args(_WithSettings, LauncherArgs):
    """Options of train. Where "none" is the default, the value is the preset's, or the agent's own."""

    distractor: str | None = None
    """Append observations that are not the task's: another environment, whose actions are random and not seen,
    or noise:8 or background:8 for 8 channels."""
    termination: str | None = _of("model")
    """Your own rule, module:function of (obs, action, next_obs); standard tasks have theirs."""
    reward: str | None = _of("model")
    """learned with the model; known: of a standard task whose observation shows it; approximate: nearly that
    of HalfCheetah, Swimmer, Hopper, Walker2d and InvertedDoublePendulum as well; or your own,
    module:function of (obs, action, next_obs). None: the preset's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models are fitted, plans imagined and the learner updated; auto: on a CUDA device where there is one."""

    policy_hidden: tuple[int, ...] | None = _learner("policy_kwargs", "net_arch")
    """Width of each hidden layer of actor and critics."""
    policy_learning_rate: float | None = _learner("learning_rate")
    """Adam's step size for actor, critics and temperature."""
    batch_size: int | None = _learner("batch_size")
    """Rows of an update."""
    gamma: float | None = _learner("gamma")
    """Discount."""
    tau: float | None = _learner("tau")
    """How far the target critics move at each update. A value reaches about tau times the updates made so
    far steps ahead."""
    initial_temperature: float | None = _of("learner")
    """SAC's entropy weight at the start; from there on it is learned."""
    fixed_temperature: bool = _of("learner", default=False)
    """Keep the entropy weight at --initial-temperature (1 where that is not given)."""
    actor_every: int | None = _learner("actor_every")
    """Of fast-sac: updates of the critics for one of actor and temperature."""
    critics: int | None = _learner("policy_kwargs", "n_critics")
    """Of fast-sac: how many critics."""
    target_critics: int | None = _learner("target_critics")
    """Of fast-sac: critics, drawn at random, whose least value is the target (REDQ); none: all."""
    layer_norm: bool | None = _learner("policy_kwargs", "layer_norm")
    """Of fast-sac: LayerNorm behind each hidden layer of the critics."""
    dropout: float | None = _learner("policy_kwargs", "dropout")
    """Of fast-sac: part of the critics' units left out at random (DroQ)."""
    imitation: float | None = _of("learner", "plan", place=("learner", "imitation"))
    """Of fast-sac: how strongly the policy is drawn to the planner's actions."""

    seeds: int = 1
    """Repeats: --seed, --seed + 1, …; each fills the folder seed-N inside --out."""
    side_by_side: int = 1
    """Seeds that learn at once, their fits and updates made as one: for small networks, and for a GPU; of fast-sac. Each
    becomes what it becomes by itself, but for rounding."""
    save_minari: str | None = None
    """Id under which to write the experience as a Minari data set, such as me/hopper-v0; not with
    several seeds."""
    video: bool = False
    """Film an episode of the trained agent, beside what its model imagined: videos/agent.mp4; of several seeds the
    first one's."""
    keep_checkpoints: int = 2
    """Saved agents to keep, the newest; the best one is kept beside them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "steps", "eval_every", most=10**9)
        self.require_at_least(1, "seeds", "keep_checkpoints", most=100_000)
        self.require_at_least(1, "eval_episodes", most=10_000)
        if self.save_minari is not None and self.seeds > 1:
            raise InvalidInputError("--save-minari: one id is for one seed; leave out --seeds")
        if self.launcher != "local" and self.seeds == 1:
            raise InvalidInputError(
                f"--launcher {self.launcher} is for several seeds, a cell each: give --seeds"
            )
        self._check_side_by_side()
        if self.preset not in ("auto", "none"):
            from agents.presets import NAMES  # it brings in PyTorch

            with naming("--preset"):
                look_up(dict.fromkeys(("auto", "none", *NAMES)), self.preset, "unknown preset")
            if self.agent in ("mpc", "mbpo"):
                raise InvalidInputError(
                    f"--preset is of --agent planning and sac, {self.agent} would ignore it: leave it out"
                )
        if self.method is not None:
            require_methods("--method", [self.method])
        require_device(self.device)
        require_settings_in_range(self)
        _check_learner(self)

    def _check_side_by_side(self) -> None:
        self.require_at_least(1, "side_by_side", most=1000)
        if self.side_by_side == 1:
            return
        without = {
            "one seed has nothing beside it; give --seeds": self.seeds == 1,
            "only fast-sac learns so; leave out --learner": self.learner not in (None, "fast-sac"),
            "mpc has no learner to share; leave it out": self.agent == "mpc",
            "they are one process, and W&B has one run in each; leave out --wandb": self.wandb,
        }
        for why, wrong in without.items():
            if wrong:
                raise InvalidInputError(f"--side-by-side: {why}")

    @property
    def making_shorter(self) -> dict[str, Any]:
        """As of every run that plays episodes, with what is appended to observations."""
        return super().making_shorter | {"distractor": self.distractor}

    @property
    def label(self) -> str:
        """What acts, in a figure."""
        return label_of(self.agent, self.method)

    def settled(self) -> Args:
        """The same with the precision measured, once for all that these options start."""
        if self.precision != "auto":
            return self
        from mbrl_bilevel.policies.fast_inference import fastest_precision

        measured: dict[str, Any] = {"precision": fastest_precision()}
        return replace(self, **measured)


def _check_learner(args: Args) -> None:
    """Raises InvalidInputError for the first argument of the learner that is out of its range."""

    def given(*names: str) -> list[str]:
        return [name for name in names if getattr(args, name) is not None]

    counts = ("policy_hidden", "batch_size", "critics", "target_critics")
    args.require_at_least(1, *given(*counts), most=100_000)
    args.require_at_least(1, *given("actor_every"), most=1000)
    args.require_positive(*given("policy_learning_rate", "initial_temperature"))
    args.require_positive(*given("imitation"), zero=True)
    args.require_positive(*given("tau"), most=1.0)
    args.require_positive(*given("gamma", "dropout"), zero=True, most=1.0)
    if args.dropout == 1.0:
        raise InvalidInputError("--dropout must be below 1, or no unit is left; got 1.0")
    # What is learned is its logarithm, in single precision.
    if args.initial_temperature is not None and args.initial_temperature < 1e-8:
        raise InvalidInputError(
            f"--initial-temperature must be at least 1e-8; got {args.initial_temperature}"
        )
