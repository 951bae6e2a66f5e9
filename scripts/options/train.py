"""The options of train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from tyro.constructors import PrimitiveConstructorSpec

from mbrl_bilevel.base.errors import InvalidInputError, look_up
from mbrl_bilevel.studies.arguments import naming, option_name
from options.shared import (
    MODEL_IS_METHOD,
    EnvironmentArgs,
    require_device,
    require_methods,
)

Part = Literal["model", "plan", "imagined", "learner"]

#: What an agent without that part would say to an option of it.
WITHOUT: dict[Part, str] = {
    "model": "has no model",
    "plan": "makes no plans",
    "imagined": "imagines no rows",
    "learner": "has no learner",
}


def _of(part: Part, *place: str, also: Part | None = None) -> Any:
    """An option of that part of an agent, or of two together: None takes the preset's value. ``place``: where
    its value goes in the settings, or behind "learner" among the learner's arguments."""
    return field(default=None, metadata={"part": part, "also": also, "place": place})


def _share(words: list[str]) -> float | Literal["auto"] | None:
    """What is given as --real-share."""
    (word,) = words
    if word in ("auto", "None"):
        return "auto" if word == "auto" else None
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{word!r} is no number; give one from 0 to 1, or auto") from None


_SHARE = PrimitiveConstructorSpec[float | Literal["auto"] | None](
    nargs=1,
    metavar="{None}|FLOAT|{auto}",
    instance_from_str=_share,
    is_instance=lambda value: value is None or value == "auto" or isinstance(value, float),
    str_from_instance=lambda value: [str(value)],
)


def label_of(agent: str, method: str | None) -> str:
    """What acts, in a figure."""
    return agent if agent == "sac" else f"{agent}, {method or 'bilevel'}"


@dataclass(frozen=True, kw_only=True)
class Args(EnvironmentArgs):
    """Options of train. Where "none" is the default, the value is the preset's, or the agent's own."""

    renamed: ClassVar[Mapping[str, str]] = MODEL_IS_METHOD

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
    """Real environment steps."""
    eval_every: int = 500
    """Real steps between evaluations; the episode under way is cut there."""
    eval_episodes: int = 5
    """Episodes of an evaluation, by plan and again by policy where an agent has both."""

    method: str | None = _of("model", "method")
    """How the model is trained: bilevel, bilevel-constant, bilevel-k-step,
    bilevel-mixture, nll, mse, mse-network, beta-nll, beta-nll-1, faithful, nll-mixture, k-step, paper,
    paper-exponential."""
    members: int | None = _of("model", "members")
    """Ensemble members."""
    hidden: tuple[int, ...] | None = _of("model", "hidden")
    """Width of each hidden layer of the model."""
    train_steps: int | None = _of("model", "schedule", "steps")
    """Gradient steps of a fit at most; early stopping ends it sooner."""
    learning_rate: float | None = _of("model", "schedule", "learning_rate")
    """Adam's step size at the start of the cosine of a fit."""
    refit_every: int | None = _of("model", "refit_every")
    """Real steps between two fits of the model, each on all experience."""
    fresh_every: int | None = _of("model", "fresh_every")
    """One fit in so many is from scratch, the others go on from the last one; 1: all are from scratch."""
    shrink: float | None = _of("model", "warm_start", "shrink")
    """What a fit that goes on multiplies the last one's parameters by."""
    perturb: float | None = _of("model", "warm_start", "perturb")
    """How much of a new network's parameters it then adds."""
    warm_part: float | None = _of("model", "warm_start", "part")
    """The part of --train-steps that a fit that goes on makes."""
    direct: bool = field(default=False, metadata={"part": "model"})
    """Let the model predict the next observation, not its change."""
    termination: str | None = _of("model")
    """Your own rule, module:function of (obs, action, next_obs); standard tasks have theirs."""
    reward: str | None = _of("model")
    """learned with the model; known: of a standard task whose observation shows it; approximate: nearly that
    of HalfCheetah, Swimmer, Hopper, Walker2d and InvertedDoublePendulum as well; or your own,
    module:function of (obs, action, next_obs). None: the preset's."""
    learning_starts: int | None = None
    """Random steps before the first model and the first update; none: the preset's."""

    planner: Literal["icem", "cem", "mppi", "random", "none"] | None = _of(
        "plan", "planner", "kind"
    )
    """Which planner; random tries all its sequences at once; none, of planning: the policy acts alone, and
    learns as before."""
    horizon: int | None = _of("plan", "planner", "horizon")
    """Steps planned ahead."""
    population: int | None = _of("plan", "planner", "population")
    """Candidate action sequences in a planner's first iteration."""
    iterations: int | None = _of("plan", "planner", "iterations")
    """Refinements of a plan."""
    noise_beta: float | None = _of("plan", "planner", "noise_beta")
    """Colour of the candidates' noise in time: 0 is white, 2 and more for slow systems."""
    add_middle: bool = field(default=False, metadata={"part": "plan"})
    """Let doing nothing compete among the plans of icem and cem: where control costs, as on Pusher."""
    proposals: int | None = _of("plan", "proposals", also="learner")
    """Action sequences of the policy that compete with the planner's own."""
    exploration: float | None = _of("plan", "exploration")
    """Noise added to planned actions while learning, in half-ranges of the action space."""
    plan_share: float | Literal["auto"] | None = _of("plan", "plan_share", also="learner")
    """The part of the steps that are acted by plan while learning, in the others the policy explores; auto:
    the one that does better acts more."""
    replan_every: int | None = _of("plan", "replan_every")
    """Steps that a plan is followed before the next is made."""
    value: Literal["none", "fitted", "critic"] | None = field(
        default=None, metadata={"part": "plan"}
    )
    """What a plan is worth behind its horizon: nothing, a value fitted to experience, or what the learner's
    critics say."""
    particles: int | None = _of("plan", "imagination", "particles")
    """Imagined trajectories of each candidate, a multiple of --members; where the preset's are not, as
    many as there are members."""
    propagation: Literal["ts1", "tsinf"] | None = _of("plan", "imagination", "propagation")
    """Whether a particle changes its ensemble member at every step (ts1) or never (tsinf)."""
    pessimism: float | None = _of("plan", "imagination", "pessimism")
    """Standard deviations of the members' returns taken off a plan's score; tsinf only."""
    precision: Literal["float32", "bfloat16", "auto"] | None = _of(
        "plan", "imagination", "precision"
    )
    """What plans are imagined in; auto: bfloat16 where that is faster, measured on the CPU at the
    start."""
    elites: int | None = _of("plan", "elites")
    """Plan with this many members, the best on held-out data; none: all."""
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata={"part": "plan"})
    """Where plans are imagined; auto: on a CUDA device where there is one. Fits and updates stay on the
    CPU."""

    real_share: Annotated[float | Literal["auto"] | None, _SHARE] = None
    """The share of real rows in an update; auto: as the model deserves on new steps; 1: none is imagined."""
    rollout_length: tuple[int, int] | None = _of("imagined")
    """Steps of an imagined branch, first and last."""
    rollout_growth: tuple[int, int] | None = _of("imagined")
    """The real steps between which the length grows from the first to the last."""
    rollout_cut: float | None = _of("imagined", "rollout_cut")
    """A branch ends where the members disagree more than at this quantile of all first steps; none: never."""
    rollouts_per_step: int | None = _of("imagined", "rollouts_per_step")
    """Branches begun for each real step."""
    imagine_every: int | None = _of("imagined", "imagine_every")
    """Real steps between two imaginations."""
    penalty: float | None = _of("imagined", "branching", "penalty")
    """What comes off an imagined reward, times the model's uncertainty there."""

    updates_per_step: int | None = _of("learner", "updates_per_step")
    """Updates of the learner after a real step."""
    policy_hidden: tuple[int, ...] | None = _of("learner", "learner", "policy_kwargs", "net_arch")
    """Width of each hidden layer of actor and critics."""
    policy_learning_rate: float | None = _of("learner", "learner", "learning_rate")
    """Adam's step size for actor, critics and temperature."""
    batch_size: int | None = _of("learner", "learner", "batch_size")
    """Rows of an update."""
    gamma: float | None = _of("learner", "learner", "gamma")
    """Discount."""
    tau: float | None = _of("learner", "learner", "tau")
    """How far the target critics move at each update. A value reaches about tau times the updates made so
    far steps ahead."""
    n_steps: int | None = _of("learner", "n_steps")
    """Real rewards that a target adds up before it asks the critics."""
    initial_temperature: float | None = _of("learner")
    """SAC's entropy weight at the start; from there on it is learned."""
    fixed_temperature: bool = field(default=False, metadata={"part": "learner"})
    """Keep the entropy weight at --initial-temperature (1 where that is not given)."""
    actor_every: int | None = _of("learner", "learner", "actor_every")
    """Of fast-sac: updates of the critics for one of actor and temperature."""
    critics: int | None = _of("learner", "learner", "policy_kwargs", "n_critics")
    """Of fast-sac: how many critics."""
    target_critics: int | None = _of("learner", "learner", "target_critics")
    """Of fast-sac: critics, drawn at random, whose least value is the target (REDQ); none: all."""
    layer_norm: bool | None = _of("learner", "learner", "policy_kwargs", "layer_norm")
    """Of fast-sac: LayerNorm behind each hidden layer of the critics."""
    dropout: float | None = _of("learner", "learner", "policy_kwargs", "dropout")
    """Of fast-sac: part of the critics' units left out at random (DroQ)."""
    imitation: float | None = _of("learner", "learner", "imitation", also="plan")
    """Of fast-sac: how strongly the policy is drawn to the planner's actions."""

    seeds: int = 1
    """Repeats: --seed, --seed + 1, …; each fills the folder seed-N inside --out."""
    jobs: int = 1
    """Processes for several seeds, each with one thread; the rows are the same whatever their number."""
    save_minari: str | None = None
    """Id under which to write the experience as a Minari data set, such as me/hopper-v0; not with
    several seeds."""
    keep_checkpoints: int = 2
    """Saved agents to keep, the newest; the best one is kept beside them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "steps", "eval_every", most=10**9)
        self.require_at_least(1, "seeds", "jobs", "keep_checkpoints", most=100_000)
        self.require_at_least(1, "eval_episodes", most=10_000)
        if self.save_minari is not None and self.seeds > 1:
            raise InvalidInputError("--save-minari: one id is for one seed; leave out --seeds")
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
        _check_ranges(self)

    @property
    def label(self) -> str:
        """What acts, in a figure."""
        return label_of(self.agent, self.method)

    def settled(self) -> Args:
        """The same with the precision measured, once for all that these options start."""
        from mbrl_bilevel.policies.fast_inference import fastest_precision

        return replace(self, precision=fastest_precision()) if self.precision == "auto" else self


def _check_ranges(args: Args) -> None:
    """Raises InvalidInputError for the first option given that is out of its range."""

    def given(*names: str) -> list[str]:
        return [name for name in names if getattr(args, name) is not None]

    args.require_at_least(1, *given("learning_starts", "refit_every", "fresh_every", "train_steps"))
    args.require_at_least(1, *given("horizon", "iterations", "n_steps"), most=10_000)
    args.require_at_least(1, *given("particles", "members", "elites", "hidden"), most=100_000)
    args.require_at_least(0, *given("proposals"), most=100_000)
    args.require_at_least(2, *given("population"), most=10**6)
    args.require_at_least(1, *given("policy_hidden", "batch_size", "critics"), most=100_000)
    args.require_at_least(1, *given("target_critics"), most=100_000)
    args.require_at_least(1, *given("rollouts_per_step", "imagine_every"), most=10_000)
    args.require_at_least(1, *given("rollout_length", "updates_per_step", "actor_every"), most=1000)
    args.require_at_least(0, *given("rollout_growth"))
    args.require_positive(*given("learning_rate", "policy_learning_rate", "initial_temperature"))
    args.require_positive(*given("pessimism", "penalty", "imitation", "noise_beta"), zero=True)
    args.require_positive(*given("exploration"), zero=True, most=1000)
    args.require_positive(*given("tau", "rollout_cut", "warm_part"), most=1.0)
    args.require_positive(*given("gamma", "dropout"), zero=True, most=1.0)
    args.require_positive(*given("shrink", "perturb"), zero=True, most=1.0)
    if args.dropout == 1.0:
        raise InvalidInputError("--dropout must be below 1, or no unit is left; got 1.0")
    for name in ("real_share", "plan_share"):
        if isinstance(getattr(args, name), float):
            args.require_positive(name, zero=True, most=1.0)
    # What is learned is its logarithm, in single precision.
    if args.initial_temperature is not None and args.initial_temperature < 1e-8:
        raise InvalidInputError(
            f"--initial-temperature must be at least 1e-8; got {args.initial_temperature}"
        )
    if args.rollout_growth is not None and args.rollout_growth[0] >= args.rollout_growth[1]:
        begin, end = args.rollout_growth
        raise InvalidInputError(
            f"--rollout-growth must be a step and a later one; got {begin} {end}"
        )
    begun = (args.rollouts_per_step or 100) * (args.imagine_every or 50)
    if begun > 10**7:
        raise InvalidInputError(
            f"--rollouts-per-step times --imagine-every must be at most {10**7:,}; got {begun:,}"
        )
    at_once = (args.population or 1) * (args.iterations or 1 if args.planner == "random" else 1)
    for name, most in (("particles", 10**7), ("horizon", 10**8)):
        if at_once * (getattr(args, name) or 1) > most:
            raise InvalidInputError(
                f"--population (of random times --iterations) times {option_name(name)} must be at "
                f"most {most:,}; got {at_once:,} x {getattr(args, name):,}"
            )
