"""The options of continual, and what of them is common to a run: which tables of names they are from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mbrl_bilevel.base.errors import InvalidInputError, look_up
from mbrl_bilevel.studies.arguments import naming, option_name
from options.shared import FitArgs, OwnModuleArgs, RepeatedArgs

if TYPE_CHECKING:
    from envs.tasks.class_sequences import ClassSequence
    from envs.tasks.sequences import TaskSequence
    from mbrl_bilevel.continual.recipes import Recipe

#: One step ahead: RMSE in the first task's target std, NLL in nats per dimension; RMSE k steps ahead.
DYNAMICS_METRICS = ("rmse", "nll", "k_rmse")
#: NLL in nats; ECE over 15 bins.
CLASS_METRICS = ("accuracy", "nll", "ece")


@dataclass(frozen=True, kw_only=True)
class Args(OwnModuleArgs, RepeatedArgs, FitArgs):
    """Options of continual."""

    sequences: tuple[str, ...] = ("hopper-mass",)
    """Sequences of tasks, all of dynamics or all of classification. One dynamics whose data shifts: halfcheetah-speed (quarters of
    the speeds), halfcheetah-behaviour (gaits that grow faster), pusher-goal (goals that move), room (six objects,
    a task each). A dynamics that changes: halfcheetah-flipped (motors that push the other way), halfcheetah-lame
    (legs without strength), halfcheetah-planets and hopper-planets (gravity, far apart), halfcheetah-long (twenty
    tasks), doublependulum-flipped (three that agents solve in some thousand steps), halfcheetah-gravity, hopper-mass,
    walker-friction, halfcheetah-body (limbs and torsos), halfcheetah-mix (ten tasks that differ in one thing or two).
    Classification: digits-split (two new digits of ten at a time), digits-parity (the same, asked for odd
    or even), digits-turned (images turned by 0 to 90 degrees), cancer-labs (breast cancer, laboratories
    that measure with another bias)."""
    context: bool = False
    """Append what varies between the tasks to every observation; for those that change the dynamics."""
    methods: tuple[str, ...] = ("bilevel+kl-seen", "bilevel", "nll+kl-seen", "nll")
    """METHOD+KEEP; a strength goes behind a colon: nll+ewc:1000. METHOD is one of compare's, or of classify's
    for classes, or losse (least squares on sparse random features). KEEP is none (fine-tuning), kl (KL to the
    previous policy on the new inputs, strength 1), kl-seen (the same at inputs like those of earlier tasks),
    kl-stored (at the inputs of a memory), kl-inferred (kl's strength inferred by the outer loop on new rows
    and on draws of the previous policy), kl-memory (inferred on new rows and on a memory that the inner loop
    does not see), lwf (the previous policy's draws at the new inputs), generative (its draws at inputs like
    the old ones), replay (stored rows), der (half of their targets as the model said them), ewc and
    online-ewc (a penalty on moved parameters, strength 100), packnet (each task has weights of its own, the
    strength a share of those still free, 0.5; it is told at test which task it is in), slow (fine-tuning, the
    learning rate times the strength from the second task on, 0.1), ftl (for losse: the sums of all rows so
    far), joint (all data so far, from fresh parameters), alone (each task by itself)."""
    agents: tuple[str, ...] = ()
    """Agents that learn the tasks by acting, in place of the methods: AGENT+PART=VALUE. AGENT is planning (its model by
    bilevel, or the method behind a colon: planning:nll) or sac (the learner of the same preset alone). The parts say
    what is kept when the task changes: model=KEEP (one of --methods' that goes on), policy=STRENGTH (of the KL to the
    policy before, at observations like those of earlier tasks), replay=ROWS (of earlier tasks, in the learner's
    replay); without any, parameters alone go on. +joint acts in all tasks side by side, +alone starts each anew. The
    observations tell the tasks apart, one-hot. The first agent is compared with the others."""
    agent_steps: int = 5000
    """Real steps of an agent in a task."""
    eval_episodes: int = 5
    """Episodes that an agent is tested by, in each task after each, and five times while it learns one."""
    keep_best: bool = False
    """When a task ends, an agent goes on from the policy that did best in five looks while it learned it, judged by other
    episodes than its tests, in the place of the last one."""
    updates_per_step: int | None = None
    """Updates of an agent's learner after a real step; none: as the preset of the task says."""
    learning_starts: int | None = None
    """Random steps of an agent at the start of a task; none: as the preset says."""
    n_train: int = 2000
    """Training steps of a task; of a table's task at most that many rows."""
    n_test: int = 1500
    """Test steps of a task, from episodes of their own; of a table's task at most that many rows."""
    memory: int = 500
    """Rows stored by the methods that store any, of all tasks together."""
    members: int = 3
    hidden: tuple[int, ...] = (128, 128)
    train_steps: int = 1000
    horizon: int = 5
    """Steps ahead of the open-loop test."""
    plan_episodes: int = 0
    """Episodes to plan in each task after each, 0 for none; their mean is the return."""
    plan_steps: int = 100
    """Steps of such an episode."""

    def __post_init__(self) -> None:
        super().__post_init__()
        from envs.tasks.sequences import STRETCH  # once options are read: it brings in MuJoCo

        for name in ("sequences", "methods"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise InvalidInputError(f"{option_name(name)}: give none twice")
        self.require_at_least(50, "n_train", "n_test")
        self.require_at_least(1, "memory", "plan_steps")
        self.require_at_least(1, "horizon", most=100_000)
        self.require_at_least(0, "plan_episodes", most=100_000)
        found = [self.sequence(name) for name in self.sequences]
        if len({type(sequence) for sequence in found}) > 1:
            raise InvalidInputError(
                "--sequences: give either dynamics or classification; their metrics are not the same"
            )
        if not self.classes and self.horizon > STRETCH:
            raise InvalidInputError(
                f"--horizon: tasks are tested in stretches of {STRETCH} steps; got {self.horizon}"
            )
        if self.classes and self.plan_episodes:
            raise InvalidInputError(
                "--plan-episodes: there is nothing to plan in a table; leave it out"
            )
        with naming("--methods"):
            for name in self.methods:
                self.recipe(name)
        if self.agents:
            self._check_agents()

    def _check_agents(self) -> None:
        from agents.sequence_agents import get_sequence_agent

        if self.classes:
            raise InvalidInputError("--agents: there is nothing to act in in a table; leave it out")
        if self.plan_episodes:
            raise InvalidInputError("--plan-episodes: agents act by themselves; leave it out")
        self.require_at_least(50, "agent_steps", most=10**9)
        self.require_at_least(1, "eval_episodes", most=1000)
        for name in ("updates_per_step", "learning_starts"):
            if getattr(self, name) is not None:
                self.require_at_least(1, name, most=10**6)
        if len(set(self.agents)) < len(self.agents):
            raise InvalidInputError("--agents: give none twice")
        with naming("--agents"):
            for name in self.agents:
                get_sequence_agent(name, self.memory)

    @property
    def classes(self) -> bool:
        """Whether the tasks are of classification."""
        from envs.tasks.class_sequences import ClassSequence

        return isinstance(self.sequence(self.sequences[0]), ClassSequence)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is measured on every task after each; the first two are what matters most."""
        if self.agents:
            return ("return", "success")
        if self.classes:
            return CLASS_METRICS
        return (*DYNAMICS_METRICS, "return") if self.plan_episodes else DYNAMICS_METRICS

    def recipe(self, method: str) -> Recipe:
        """What METHOD+KEEP means for these tasks. Raises as ``get_recipe``."""
        from mbrl_bilevel.continual.recipes import get_recipe, get_target_method
        from mbrl_bilevel.training.class_methods import get_class_method

        way = get_class_method if self.classes else get_target_method
        return get_recipe(method, self.memory, way)

    def sequence(self, name: str) -> TaskSequence | ClassSequence:
        """The one of that name, with --context or not. Raises InvalidInputError if there is none."""
        from envs.tasks.class_sequences import CLASS_SEQUENCES, ClassSequence
        from envs.tasks.sequences import SEQUENCES

        known: dict[str, TaskSequence | ClassSequence] = {**SEQUENCES, **CLASS_SEQUENCES}
        found = look_up(known, name, "--sequences: unknown sequence")
        if not self.context:
            return found
        if isinstance(found, ClassSequence) or found.kind == "shared":
            raise InvalidInputError(
                f"--context: nothing but the data differs in {name}; leave it out"
            )
        return found.with_context()
