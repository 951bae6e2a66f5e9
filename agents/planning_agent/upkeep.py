"""What is done between acting and updating: fits, imagined rows, and a look at how things are."""

from __future__ import annotations

from collections.abc import Callable

from stable_baselines3.common.callbacks import BaseCallback
from tqdm.auto import tqdm

from agents.planning_agent.base_agent import AgentParts
from agents.planning_agent.health import Clock, imagined_share, look


class Upkeep(BaseCallback):
    """Called by SB3's loop; does for ``agent`` what is due, and moves its progress bar."""

    def __init__(
        self, agent: AgentParts, refit: Callable[[], object], imagine: Callable[[], object]
    ) -> None:
        super().__init__()
        self._agent, self._refit, self._imagine = agent, refit, imagine
        self.bar = tqdm(disable=True)
        self._until: int | None = None
        self.clock = Clock()
        #: Whether somebody else calls ``refit_due`` and ``imagine_due``, and fits: agents side by side.
        self.put_off = False

    def with_bar(self, show: bool, until: int | None = None) -> Upkeep:
        """Itself, with a new progress bar for the steps to come, on stderr; the learner's schedules end at
        step ``until`` (None: at the last of these steps)."""
        self.bar, self._until = tqdm(desc="learn", disable=not show), until
        return self

    def _on_training_start(self) -> None:
        algorithm = self._agent.algorithm
        self.bar.total, self.bar.n = algorithm._total_timesteps, algorithm.num_timesteps
        self.bar.refresh()
        if self._until is not None:
            # SB3's loop keeps its own end: this is what its schedules go by.
            algorithm._total_timesteps = self._until
        self.clock.start()
        # A fit that was interrupted is made up for.
        self._keep_up()

    def _on_rollout_start(self) -> None:
        self.clock.lap("updating")

    def _on_step(self) -> bool:
        self.bar.update(self._agent.n_envs)
        return True

    def _on_rollout_end(self) -> None:
        self.clock.lap("acting")
        self._keep_up()
        self.clock.lap("fitting")

    def _on_training_end(self) -> None:
        self.clock.lap("updating")
        self.bar.close()

    def _keep_up(self) -> None:
        if self.put_off:
            return
        refit = self.refit_due()
        if refit:
            self._refit()
        self.imagine_due(refit)

    def refit_due(self) -> bool:
        """Whether a fit is due now; before it, how things are is looked at."""
        agent, settings = self._agent, self._agent.settings
        if not self._begun or not (
            agent.model is None or self._due("fitted_on", settings.refit_every)
        ):
            return False
        # Side by side others act and learn in between, and no clock tells whose time it was.
        found = look(agent, None if self.put_off else self.clock)
        if settings.real_share == "auto" and "health/target_error" in found:
            deserved = imagined_share(found["health/target_error"])
            agent.experience.real_share = max(settings.least_real_share, 1.0 - deserved)
            agent.logger.record("model/imagined_share", 1.0 - agent.experience.real_share)
        return True

    def imagine_due(self, refit: bool) -> None:
        """Imagine steps where that is due, as it is behind each ``refit``."""
        settings = self._agent.settings
        every = settings.imagine_every
        if self._begun and settings.imagines and (refit or self._due("imagined_on", every)):
            self._imagine()

    @property
    def _begun(self) -> bool:
        settings = self._agent.settings
        return settings.uses_model and len(self._agent.experience) >= settings.learning_starts

    def _due(self, last: str, every: int) -> bool:
        # With several environments the count moves in strides: a multiple may be crossed.
        first = self._agent.settings.learning_starts
        before = int(getattr(self._agent.progress, last)) - first
        return (len(self._agent.experience) - first) // every > before // every
