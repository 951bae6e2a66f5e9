"""The options of train, and the agents' settings made of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from _args import RunArgs, naming, option_name

from agents.common.device import planning_device
from agents.mbpo import MBPOSettings, RolloutLength
from agents.mpc import MPCSettings
from agents.planners import PLANNERS
from agents.planning_agent.terminal_value import ValueSettings
from mbrl_bilevel.branches import Branching
from mbrl_bilevel.data import rows_needed
from mbrl_bilevel.errors import InvalidInputError
from mbrl_bilevel.fit import Schedule
from mbrl_bilevel.methods import get_method
from mbrl_bilevel.model_env import Imagination

#: Who uses an option, where not all agents do; the help says so too.
USED_BY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            *("exploration", "planner", "horizon", "population", "iterations", "noise_beta"),
            *("add_middle", "replan_every", "no_value", "particles", "propagation", "pessimism"),
            *("precision", "elites", "device"),
        ),
        ("mpc",),
    ),
    **dict.fromkeys(
        (
            *("model", "termination", "reward", "refit_every", "members", "hidden"),
            *("train_steps", "learning_rate"),
        ),
        ("mpc", "mbpo"),
    ),
    **dict.fromkeys(
        (
            *("updates_per_step", "policy_hidden", "policy_learning_rate", "tau", "batch_size"),
            *("initial_temperature", "fixed_temperature"),
        ),
        ("mbpo", "sac"),
    ),
    **dict.fromkeys(
        (
            *("real_share", "rollout_length", "rollout_growth", "rollouts_per_step"),
            *("imagine_every", "penalty"),
        ),
        ("mbpo",),
    ),
}

#: Likewise of planners.
USED_BY_PLANNERS: dict[str, tuple[str, ...]] = {
    "noise_beta": ("icem",),
    **dict.fromkeys(("add_middle", "elite_fraction"), ("icem", "cem")),
}


def label_of(agent: str, model: str) -> str:
    """What acts, in a figure."""
    return agent if agent == "sac" else f"{agent}, {model}"


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Options of train."""

    env_id: str = "Reacher-v5"
    """Gymnasium environment with Box observations and bounded Box or Discrete actions."""
    import_module: str | None = None
    """Module to import first; it registers an environment of your own."""
    env_timeout: float | None = None
    """Seconds that one call of the environment may take; none: no limit."""
    agent: Literal["mpc", "mbpo", "sac"] = "mpc"
    """What acts: mpc plans in the learned model at every step; mbpo is Stable-Baselines3's SAC trained on
    real and imagined steps; sac the same on real ones alone, without a model."""
    model: str = "bilevel"
    """Of mpc and mbpo: how the model is trained: bilevel, bilevel-temperature, bilevel-constant,
    bilevel-k-step, bilevel-mixture, nll,
    mse, mse-network, beta-nll, beta-nll-1, faithful, nll-mixture, k-step, paper, paper-exponential."""
    steps: int = 3000
    """Real environment steps."""
    eval_every: int = 500
    """Real steps between evaluations; the episode under way is cut there."""
    eval_episodes: int = 5
    """Episodes of an evaluation."""
    termination: str | None = None
    """Of mpc and mbpo: your own rule, module:function of (obs, action, next_obs); standard tasks have
    theirs."""
    reward: str = "learned"
    """Of mpc and mbpo: learned with the model; known: of a standard task whose observation shows it;
    approximate: nearly that of HalfCheetah, Swimmer, Hopper, Walker2d and InvertedDoublePendulum as well; or
    your own, module:function of (obs, action, next_obs)."""
    learning_starts: int = 250
    """Random steps before the first model, or of sac before the first update."""
    refit_every: int = 250
    """Of mpc and mbpo: real steps between two fits of the model, each from scratch on all experience."""
    exploration: float = 0.2
    """Of mpc: noise added to planned actions while learning, in half-ranges of the action space."""
    updates_per_step: int | None = None
    """Of mbpo and sac: updates after a real step; none: 10 of mbpo, 1 of sac."""
    policy_hidden: tuple[int, ...] = (256, 256)
    """Of mbpo and sac: width of each hidden layer of actor and critics."""
    policy_learning_rate: float = 3e-4
    """Of mbpo and sac: Adam's step size for actor, critics and temperature."""
    tau: float = 0.005
    """Of mbpo and sac: how far the target critics move at each update. A value reaches about tau times
    the updates made so far steps ahead."""
    initial_temperature: float = 1.0
    """Of mbpo and sac: SAC's entropy weight at the start; from there on it is learned."""
    fixed_temperature: bool = False
    """Of mbpo and sac: keep the entropy weight at --initial-temperature."""
    batch_size: int = 256
    """Of mbpo and sac: rows of an update."""
    real_share: float = 0.05
    """Of mbpo: the share of real rows in an update."""
    rollout_length: tuple[int, int] = (1, 1)
    """Of mbpo: steps of an imagined branch, first and last."""
    rollout_growth: tuple[int, int] = (0, 1)
    """Of mbpo: the real steps between which the length grows from the first to the last."""
    rollouts_per_step: int = 100
    """Of mbpo: branches begun for each real step."""
    imagine_every: int = 50
    """Of mbpo: real steps between two imaginations."""
    penalty: float = 0.0
    """Of mbpo: what comes off an imagined reward, times the model's uncertainty there."""
    planner: Literal["icem", "cem", "mppi", "random"] = "icem"
    """Of mpc: which planner; random tries --population times --iterations sequences at once."""
    horizon: int = 15
    """Of mpc: steps planned ahead."""
    population: int = 64
    """Of mpc: candidate action sequences in a planner's first iteration."""
    iterations: int = 3
    """Of mpc: refinements of a plan."""
    noise_beta: float = 0.25
    """Of mpc: colour of icem's noise: 0 is white, 2 and more for slow systems."""
    add_middle: bool = False
    """Of mpc: let doing nothing compete among the plans of icem and cem: where control costs, as on
    Pusher."""
    replan_every: int = 1
    """Of mpc: steps that a plan is followed before the next is made."""
    no_value: bool = False
    """Of mpc: plan without a terminal value; it is used only where episodes can terminate."""
    particles: int = 5
    """Of mpc: imagined trajectories of each candidate; a multiple of --members."""
    propagation: Literal["ts1", "tsinf"] = "tsinf"
    """Of mpc: whether a particle changes its ensemble member at every step (ts1) or never (tsinf)."""
    pessimism: float = 0.0
    """Of mpc: standard deviations of the members' returns taken off a plan's score; tsinf only."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of mpc: what plans are imagined in; auto: bfloat16 where that is faster, measured on the CPU
    at the start."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Of mpc: where plans are imagined; auto: on a CUDA device where there is one. Fits stay on the CPU."""
    members: int = 5
    """Of mpc and mbpo: ensemble members."""
    elites: int | None = None
    """Of mpc: plan with this many members, the best on held-out data; none: all."""
    hidden: tuple[int, ...] = (200, 200)
    """Of mpc and mbpo: width of each hidden layer of the model."""
    train_steps: int = 1500
    """Of mpc and mbpo: gradient steps of a fit at most."""
    learning_rate: float = 1e-3
    """Of mpc and mbpo: Adam's step size at the start of the cosine of a fit."""
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
        self.refuse_unused(USED_BY, "--agent", (self.agent,))
        self.refuse_unused(USED_BY_PLANNERS, "--planner", (self.planner,))
        with naming("--model"):
            get_method(self.model)
        self.require_at_least(1, "steps", "eval_every", most=10**9)
        self.require_at_least(1, "seeds", "jobs", "keep_checkpoints", most=100_000)
        self.require_at_least(1, "learning_starts", "refit_every", "train_steps")
        self.require_at_least(1, "eval_episodes", "horizon", "iterations", most=10_000)
        self.require_at_least(1, "particles", "members", "hidden", most=100_000)
        self.require_at_least(2, "population", most=10**6)
        self.require_positive("learning_rate")
        if self.env_timeout is not None:
            self.require_positive("env_timeout")
        if self.save_minari is not None and self.seeds > 1:
            raise InvalidInputError("--save-minari: one id is for one seed; leave out --seeds")
        if self.learning_starts >= self.steps:
            raise InvalidInputError(
                f"--learning-starts must be below --steps ({self.steps}), or nothing is learned; "
                f"got {self.learning_starts}"
            )
        if self.agent in USED_BY["model"] and self.real_share < 1.0:
            self.require_at_least(rows_needed(self.members), "learning_starts")
        if self.agent == "mpc":
            self._check_mpc()
            self.mpc_settings()
        else:
            self._check_mbpo()
            self.mbpo_settings()

    @property
    def label(self) -> str:
        """What acts, in a figure."""
        return label_of(self.agent, self.model)

    def settled(self) -> Args:
        """The same with the precision measured, once for all that these options start."""
        if self.agent != "mpc":
            return self
        return replace(self, precision=self.mpc_settings().imagination.precision)

    def mpc_settings(self) -> MPCSettings:
        """Of --agent mpc. Raises InvalidInputError for a number out of range."""
        if self.planner == "random":
            size: dict[str, Any] = {"population": self.population * self.iterations}
        else:
            size = {"population": self.population, "iterations": self.iterations}
        if self.planner in ("icem", "cem"):
            size |= {"elite_fraction": 0.15, "add_middle": self.add_middle}
        if self.planner == "icem":
            size["noise_beta"] = self.noise_beta
        planner = PLANNERS[self.planner](horizon=self.horizon, **size)
        return MPCSettings(
            method=self.model,
            planner=planner,
            imagination=Imagination(
                self.particles,
                self.propagation,
                pessimism=self.pessimism,
                precision=self.precision,
            ),
            members=self.members,
            hidden=self.hidden,
            schedule=self._schedule(),
            learning_starts=self.learning_starts,
            refit_every=self.refit_every,
            exploration=self.exploration,
            replan_every=self.replan_every,
            elites=self.elites,
            value=None if self.no_value else ValueSettings(),
        )

    def mbpo_settings(self) -> MBPOSettings:
        """Of --agent mbpo and sac. Raises InvalidInputError for a number out of range."""
        alone = self.agent == "sac"
        return MBPOSettings(
            method=self.model,
            members=self.members,
            hidden=self.hidden,
            schedule=self._schedule(),
            learning_starts=self.learning_starts,
            refit_every=self.refit_every,
            imagine_every=self.imagine_every,
            rollouts_per_step=self.rollouts_per_step,
            rollout=RolloutLength(*self.rollout_length, *self.rollout_growth),
            branching=Branching(penalty=self.penalty),
            updates_per_step=self.updates_per_step or (1 if alone else 10),
            real_share=1.0 if alone else self.real_share,
        )

    def algorithm_kwargs(self) -> dict[str, Any]:
        """Stable-Baselines3's own arguments, of --agent mbpo and sac."""
        temperature = self.initial_temperature
        return {
            "learning_rate": self.policy_learning_rate,
            "batch_size": self.batch_size,
            "tau": self.tau,
            "ent_coef": temperature if self.fixed_temperature else f"auto_{temperature}",
            "policy_kwargs": {"net_arch": list(self.policy_hidden)},
        }

    def _schedule(self) -> Schedule:
        return Schedule(steps=self.train_steps, learning_rate=self.learning_rate)

    def _check_mpc(self) -> None:
        self.require_positive("exploration", "pessimism", zero=True)
        with naming("--device"):
            planning_device(self.device)
        at_once = self.population * (self.iterations if self.planner == "random" else 1)
        for name, most in (("particles", 10**7), ("horizon", 10**8)):
            if at_once * getattr(self, name) > most:
                raise InvalidInputError(
                    f"--population (of random times --iterations) times {option_name(name)} must be at "
                    f"most {most:,}; got {at_once:,} x {getattr(self, name):,}"
                )
        if self.elites is not None and not 1 <= self.elites <= self.members:
            raise InvalidInputError(
                f"--elites must be at least 1 and at most --members ({self.members}); got {self.elites}"
            )
        planning = self.elites or self.members
        if self.particles % planning:
            raise InvalidInputError(
                "--particles must be a multiple of --members, or of --elites where these are given "
                f"({planning}); got {self.particles}"
            )

    def _check_mbpo(self) -> None:
        self.require_at_least(1, "policy_hidden", "batch_size", most=100_000)
        self.require_at_least(1, "rollouts_per_step", "imagine_every", most=10_000)
        begun = self.rollouts_per_step * self.imagine_every
        if begun > 10**7:
            raise InvalidInputError(
                f"--rollouts-per-step times --imagine-every must be at most {10**7:,}; got {begun:,}"
            )
        self.require_at_least(1, "rollout_length", most=1000)
        self.require_at_least(0, "rollout_growth")
        begin, end = self.rollout_growth
        if begin >= end:
            raise InvalidInputError(
                f"--rollout-growth must be a step and a later one; got {begin} {end}"
            )
        if self.updates_per_step is not None:
            self.require_at_least(1, "updates_per_step", most=1000)
        self.require_positive("policy_learning_rate", "initial_temperature")
        # What is learned is its logarithm, in single precision.
        if self.initial_temperature < 1e-8:
            raise InvalidInputError(
                f"--initial-temperature must be at least 1e-8; got {self.initial_temperature}"
            )
        self.require_positive("tau", most=1.0)
        self.require_positive("penalty", zero=True)
        self.require_positive("real_share", zero=True, most=1.0)
