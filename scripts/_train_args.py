"""The options of train, and the agents made of them: preset first, explicit options over it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, cast

import gymnasium as gym
from _args import RunArgs, _as_typed, naming, option_name
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from tyro.constructors import PrimitiveConstructorSpec

from agents.common.device import planning_device
from agents.common.first_model import require_enough_for_a_model
from agents.learners.named import learner_class
from agents.learners.no_learner import NoLearner
from agents.mbpo import MBPO, MBPOSettings
from agents.mpc import MPC, MPCSettings
from agents.planning_agent.agent import PlanningAgent
from agents.planning_agent.settings import PlanningSettings
from agents.presets import NAMES, Preset, named_preset, preset_for
from agents.presets.preset import as_values, learner_defaults, merged, with_values
from envs.tasks.make import Env
from mbrl_bilevel.base.errors import InvalidInputError, look_up
from mbrl_bilevel.policies.fast_inference import fastest_precision
from mbrl_bilevel.training.methods import get_method

Part = Literal["model", "plan", "imagined", "learner"]

#: What an agent without that part would say to an option of it.
_WITHOUT: dict[Part, str] = {
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


def label_of(agent: str, model: str | None) -> str:
    """What acts, in a figure."""
    return agent if agent == "sac" else f"{agent}, {model or 'bilevel'}"


@dataclass(frozen=True)
class Built:
    """What the options come to on one environment."""

    kind: type[PlanningAgent]
    settings: PlanningSettings
    learner: type[OffPolicyAlgorithm]
    learner_kwargs: Mapping[str, Any]
    reward: str
    preset: Preset

    def resolved(self) -> dict[str, Any]:
        """All values that the run goes by, for its config.json."""
        return {
            "preset": self.preset.name,
            "settings": as_values(self.settings),
            "learner_class": self.learner.__name__,
            "learner": dict(self.learner_kwargs),
            "reward": self.reward,
        }

    def make(self, env: Env, **given: Any) -> PlanningAgent:
        """A new agent for ``env``; ``given``: seed, device, rules."""
        return self.kind(
            env,
            self.settings,
            algorithm=self.learner,
            algorithm_kwargs=self.learner_kwargs,
            **given,
        )


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Options of train. Where "none" is the default, the value is the preset's, or the agent's own."""

    env_id: str = "Reacher-v5"
    """Gymnasium environment with Box observations and bounded Box or Discrete actions."""
    import_module: str | None = None
    """Module to import first; it registers an environment of your own."""
    env_timeout: float | None = None
    """Seconds that one call of the environment may take; none: no limit."""
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

    model: str | None = _of("model", "method")
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
    no_value: bool = field(default=False, metadata={"part": "plan"})
    """Plan without a value behind the horizon."""
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
        if self.env_timeout is not None:
            self.require_positive("env_timeout")
        if self.save_minari is not None and self.seeds > 1:
            raise InvalidInputError("--save-minari: one id is for one seed; leave out --seeds")
        if self.preset not in ("auto", "none"):
            with naming("--preset"):
                look_up(dict.fromkeys(("auto", "none", *NAMES)), self.preset, "unknown preset")
            if self.agent in ("mpc", "mbpo"):
                raise InvalidInputError(
                    f"--preset is of --agent planning and sac, {self.agent} would ignore it: leave it out"
                )
        if self.model is not None:
            with naming("--model"):
                get_method(self.model)
        with naming("--device"):
            planning_device(self.device)
        _check_ranges(self)

    @property
    def label(self) -> str:
        """What acts, in a figure."""
        return label_of(self.agent, self.model)

    def settled(self) -> Args:
        """The same with the precision measured, once for all that these options start."""
        return replace(self, precision=fastest_precision()) if self.precision == "auto" else self

    def built(self, env: Env) -> Built:
        """What is made of these options on ``env``: the preset's values, and the given ones over them.

        Raises InvalidInputError for values that do not go together, and options that the agent would
        ignore.
        """
        preset = self._preset(env)
        kind, base = self._agent()
        learner = self._learner(env)
        alone = {"planner": None, "real_share": 1.0, "value": None}
        start = dict(preset.settings)
        if self.agent == "sac":
            start = {n: v for n, v in start.items() if n in _PACE} | alone
        over, arguments = self._given()
        # What decides which parts there are, before the options of parts that are not there.
        parts = {name: over[name] for name in ("real_share",) if name in over}
        if "planner" in over and over["planner"] is None:
            parts["planner"] = None
        self._refuse_idle(with_values(base, merged(start, parts)), learner)
        with _typed():
            settings = with_values(base, self._with_particles(base, merged(start, over)))
        kwargs = merged(self._learner_start(learner, preset), arguments)
        self._check_together(settings, kwargs)
        reward = self.reward or ("learned" if self.agent in ("mpc", "mbpo") else preset.reward)
        return Built(kind, settings, learner, kwargs, reward, preset)

    def _preset(self, env: Env) -> Preset:
        if self.agent in ("mpc", "mbpo") or self.preset == "none":
            return Preset("none")
        return preset_for(env) if self.preset == "auto" else named_preset(self.preset)

    def _agent(self) -> tuple[type[PlanningAgent], PlanningSettings]:
        if self.agent == "mpc":
            return MPC, MPCSettings()
        if self.agent == "mbpo":
            return MBPO, MBPOSettings(learning_starts=250)
        if self.agent == "sac" and self.preset == "none":
            return MBPO, MBPOSettings(real_share=1.0, learning_starts=250, updates_per_step=1)
        return PlanningAgent, PlanningSettings()

    def _learner(self, env: Env) -> type[OffPolicyAlgorithm]:
        if self.agent == "mpc":
            if self.learner is not None:
                raise InvalidInputError("--learner: mpc has no learner; leave it out")
            return NoLearner
        discrete = isinstance(env.action_space, gym.spaces.Discrete)
        if discrete and self.agent == "sac" and self.learner is None:
            raise InvalidInputError(
                f"--env-id {self.env_id!r}: sac is for continuous actions; give --learner dqn, or "
                "--agent planning, mpc or mbpo"
            )
        with naming("--learner"):
            kind = learner_class(self.learner or ("dqn" if discrete else "fast-sac"))
        if discrete != (kind.__name__ == "DQN"):
            raise InvalidInputError(
                f"--learner {self.learner}: {kind.__name__} does not take the actions of "
                f"{self.env_id!r}, {env.action_space}; leave it out"
            )
        return kind

    def _learner_start(self, learner: type[OffPolicyAlgorithm], preset: Preset) -> dict[str, Any]:
        """The learner's arguments before any option."""
        if preset.name == "none" and self.agent != "planning":
            return {} if learner is NoLearner else {"policy_kwargs": {"net_arch": [256, 256]}}
        return learner_defaults(learner, preset)

    def _given(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The options that were given, nested as the settings and as the learner's arguments are."""
        found: dict[str, Any] = {}
        for each in fields(self):
            value, place = getattr(self, each.name), each.metadata.get("place")
            if place and value is not None:
                found = merged(found, _nested(place, value))
        arguments: dict[str, Any] = found.pop("learner", {})
        if self.planner == "random" and self.population is not None:
            found["planner"]["population"] = self.population * (self.iterations or 1)
            found["planner"].pop("iterations", None)
        for name in ("learning_starts", "real_share"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        if self.rollout_length is not None or self.rollout_growth is not None:
            first, last = self.rollout_length or (1, 1)
            begin, end = self.rollout_growth or (0, 1)
            found["rollout"] = {"first": first, "last": last, "begin": begin, "end": end}
        if self.no_value:
            found["value"] = None
        if self.add_middle:
            found = merged(found, {"planner": {"add_middle": True}})
        if self.direct:
            found["direct"] = True
        if self.planner == "none":
            found |= {"planner": None, "value": None}
        start = self.initial_temperature
        if self.fixed_temperature:
            arguments["ent_coef"] = 1.0 if start is None else start
        elif start is not None:
            arguments["ent_coef"] = f"auto_{start}"
        return found, arguments

    def _with_particles(self, base: PlanningSettings, over: dict[str, Any]) -> dict[str, Any]:
        """``over`` with as many particles as members plan, where they were not given and do not go up."""
        values = merged(as_values(base), over)
        name = "members" if values["elites"] is None else "elites"
        particles, count = values["imagination"]["particles"], values[name]
        if values["planner"] is None or particles % count == 0:
            return over
        if self.particles is not None:
            raise InvalidInputError(
                f"--particles must be a multiple of {option_name(name)} ({count}); got {particles}"
            )
        return merged(over, {"imagination": {"particles": count}})

    def _refuse_idle(self, settings: PlanningSettings, learner: type[OffPolicyAlgorithm]) -> None:
        """Raises InvalidInputError for an option of a part that the agent does not have."""
        if self.agent == "mpc" and self.planner == "none":
            raise InvalidInputError(
                "--planner none: mpc has nothing else to act by; give a planner, or --agent planning"
            )
        has: dict[Part, bool] = {
            "model": settings.uses_model and self.agent != "sac",
            "plan": settings.planner is not None and self.agent in ("planning", "mpc"),
            "imagined": settings.imagines and self.agent != "sac",
            "learner": learner is not NoLearner,
        }
        off = "planner" if self.agent == "planning" and self.planner == "none" else None
        for each in fields(self):
            parts = cast("list[Part | None]", [each.metadata.get(n) for n in ("part", "also")])
            part = next((part for part in parts if part is not None and not has[part]), None)
            if each.name == off or part is None or getattr(self, each.name) == each.default:
                continue
            raise InvalidInputError(
                f"{option_name(each.name)}: --agent {self.agent} {_WITHOUT[part]} and would ignore "
                "it; leave it out"
            )
        if self.real_share is not None and (learner is NoLearner or self.agent == "sac"):
            without = _WITHOUT["imagined" if self.agent == "sac" else "learner"]
            raise InvalidInputError(
                f"--real-share: --agent {self.agent} {without} and would ignore it; leave it out"
            )
        for name, users in _USERS.items():
            if learner.__name__ not in users and getattr(self, name) not in (None, False):
                raise InvalidInputError(
                    f"{option_name(name)} is of --learner {_listed(users.values())}, "
                    f"{learner.__name__} would ignore it: leave it out"
                )

    def _check_together(self, settings: PlanningSettings, learner: Mapping[str, Any]) -> None:
        if settings.learning_starts >= self.steps:
            raise InvalidInputError(
                f"--learning-starts must be below --steps ({self.steps}), or nothing is learned; "
                f"got {settings.learning_starts}"
            )
        for name in ("shrink", "perturb", "warm_part"):
            if getattr(self, name) is not None and settings.fresh_every == 1:
                raise InvalidInputError(
                    f"{option_name(name)}: each fit is from scratch and would ignore it; give --fresh-every 2 or more"
                )
        for name in ("exploration", "imitation"):
            if getattr(self, name) is not None and settings.plan_share == 0.0:
                raise InvalidInputError(
                    f"{option_name(name)}: with --plan-share 0 no step is acted by plan while learning, which "
                    "would ignore it; leave it out"
                )
        drawn, critics = learner.get("target_critics"), learner.get("policy_kwargs", {})
        if drawn is not None and drawn > (most := critics.get("n_critics", 2)):
            raise InvalidInputError(
                f"--target-critics must be at most --critics ({most}); got {drawn}"
            )
        if settings.uses_model:
            with _typed():
                require_enough_for_a_model(settings.members, settings.learning_starts, 0)


#: What the learner alone takes of a preset's settings.
_PACE = ("learning_starts", "updates_per_step", "n_steps", "real_rows")

_FAST = {"FastSAC": "fast-sac"}
_ENTROPIC = _FAST | {"SAC": "sac", "TQC": "tqc", "CrossQ": "crossq"}
#: Whose an option is that not all learners take: their classes, and what --learner calls them.
_USERS: dict[str, dict[str, str]] = {
    **dict.fromkeys(("actor_every", "critics", "target_critics"), _FAST),
    **dict.fromkeys(("layer_norm", "dropout", "imitation"), _FAST),
    **dict.fromkeys(("initial_temperature", "fixed_temperature"), _ENTROPIC),
    "tau": _FAST | {"SAC": "sac", "TD3": "td3", "DDPG": "ddpg", "DQN": "dqn", "TQC": "tqc"},
}


@contextmanager
def _typed() -> Iterator[None]:
    """What is refused inside by the name of a setting is told by that of its option."""
    try:
        yield
    except InvalidInputError as error:
        raise _as_typed(error, Args) from error


def _listed(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _nested(place: tuple[str, ...], value: Any) -> dict[str, Any]:
    for name in reversed(place):
        value = {name: list(value) if isinstance(value, tuple) else value}
    return cast(dict[str, Any], value)


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
