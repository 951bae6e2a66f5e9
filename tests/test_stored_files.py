"""Every file in tests/data/files, of the code of commit b042254, still loads and says what it said.

``make.py`` there tells how they were made; ``answers.py`` what is asked of them. Models, values and
policies are compared to 1e-4. A plan is a search, in which rounding (it differs between processors)
may move what is found: its actions to 1e-3 of their range of a few units.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.noise import NormalActionNoise

# All that this test imports of the project.
from agents.mbpo import MBPO
from agents.mpc import MPC
from envs.known.endings import termination_rule
from envs.known.rewards import reward_rule
from envs.tasks.make import make_env
from mbrl_bilevel.inner.losses import PolicyGradient
from mbrl_bilevel.inner.rewards import RBF, Mahalanobis, NeuralReward, RewardMatrix
from mbrl_bilevel.models.dynamics_checkpoint import load_model, load_parameters
from mbrl_bilevel.policies.policies import (
    CategoricalPolicy,
    FullGaussianPolicy,
    GaussianPolicy,
    MixturePolicy,
)

FILES = Path(__file__).resolve().parent / "data" / "files"
sys.path.append(str(FILES))

from answers import Entry, environment, going_on, of_agent, of_model, of_module  # noqa: E402

EXPECTED: dict[str, Entry] = json.loads((FILES / "expected.json").read_text())
AGENTS = [name for name, entry in EXPECTED.items() if entry["kind"] in ("mpc", "mbpo")]
MODELS = [name for name, entry in EXPECTED.items() if entry["kind"] == "model"]
PARAMETERS = [name for name, entry in EXPECTED.items() if entry["kind"] == "parameters"]
#: What comes of a search by the planner.
PLANNED = ("actions", "next_actions")


@cache
def rules(env_id: str) -> dict[str, Any]:
    """The known rules of a task."""
    env = make_env(env_id)
    return {"termination": termination_rule(env), "reward": reward_rule(env)}


def known(entry: Entry) -> dict[str, Any]:
    """Those of them that the file was made with."""
    return {name: rule for name, rule in rules(entry["env_id"]).items() if entry.get(name)}


def loaded(name: str, path: Path | None = None) -> Any:
    """The agent in the file ``name``, or in another one of it, as a user loads it."""
    entry, path = EXPECTED[name], path or FILES / f"{name}.safetensors"
    env = environment(entry, make_env)
    if entry["kind"] == "mpc":
        return MPC.load(path, env, device="cpu", **known(entry))
    given: dict[str, Any] = {}
    if "action_noise" in entry:
        spread = np.full(1, entry["action_noise"])
        given["algorithm_kwargs"] = {"action_noise": NormalActionNoise(np.zeros(1), spread)}
    return MBPO.load(path, env, **given, **known(entry))


def require_alike(
    found: Any, stored: Any, where: str, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """Equal names, counts and shapes; floating-point numbers to a tolerance."""
    if isinstance(stored, dict):
        assert isinstance(found, dict), where
        assert found.keys() == stored.keys(), where
        for name, value in stored.items():
            require_alike(found[name], value, f"{where}: {name}", rtol, atol)
    elif isinstance(stored, list) and all(
        isinstance(value, int | float | list) for value in stored
    ):
        torch.testing.assert_close(
            torch.tensor(found, dtype=torch.float64),
            torch.tensor(stored, dtype=torch.float64),
            rtol=rtol,
            atol=atol,
            msg=lambda told: f"{where}: {told}",
        )
    elif isinstance(stored, float):
        assert found == pytest.approx(stored, rel=rtol, abs=atol), where
    else:
        assert found == stored, where


def test_every_file_has_its_answers() -> None:
    assert {path.stem for path in FILES.glob("*.safetensors")} == EXPECTED.keys()


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_says_what_it_said(name: str) -> None:
    entry, agent = EXPECTED[name], loaded(name)
    says = entry["says"]
    if "actions" not in says:  # Saved before its first step, when it has nothing to say.
        assert (agent.num_timesteps, agent.seed) == (says["num_timesteps"], says["seed"])
        return
    found = of_agent(agent, entry["kind"], entry["inputs"])
    planned = PLANNED if entry["kind"] == "mpc" else ()
    for part in planned:
        require_alike(found.pop(part), says[part], f"{name}: {part}", atol=1e-3)
    rest = {part: value for part, value in says.items() if part not in planned}
    require_alike(found, rest, name)


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.filterwarnings("ignore:learn\\(\\) ended")
def test_an_agent_learns_on_and_is_saved_again(name: str, tmp_path: Path) -> None:
    agent, stored = loaded(name), EXPECTED[name]["goes_on"]
    found = going_on(agent)
    assert found["steps"] == stored["steps"]
    assert np.shape(found["action"]) == np.shape(stored["action"])
    agent.save(tmp_path / "again.safetensors")
    again = loaded(name, tmp_path / "again.safetensors")
    assert (again.num_timesteps, again.seed) == (agent.num_timesteps, agent.seed)
    obs = np.asarray(EXPECTED[name]["inputs"]["obs"], dtype=np.float32)
    acts = [each.predict(obs, deterministic=True)[0] for each in (again, agent)]
    np.testing.assert_array_equal(*acts)


@pytest.mark.parametrize("name", [name for name in AGENTS if name.startswith("mpc")])
@pytest.mark.filterwarnings("ignore:learn\\(\\) ended")
def test_the_next_steps_are_those_it_took_then(name: str) -> None:
    """The saved random states are in use again, draw for draw.

    A version that draws in another order on purpose fails here alone; the tests above stay. Of MBPO the
    next one did: a stretch of learning seeds its episodes by how many there were, as MPC always has.
    """
    require_alike(going_on(loaded(name)), EXPECTED[name]["goes_on"], name, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_predicts_what_it_predicted(name: str) -> None:
    entry = EXPECTED[name]
    model = load_model(FILES / f"{name}.safetensors", **known(entry))
    require_alike(of_model(model, entry["inputs"]), entry["says"], name)


@cache
def modules() -> dict[str, torch.nn.Module]:
    """Objects of the arguments that the stored ones were made with; their parameters are others."""
    generator = torch.Generator().manual_seed(0)
    small: dict[str, Any] = {"generator": generator, "members": 2, "hidden": (4,)}
    return {
        "gaussian": GaussianPolicy(3, 2, **small),
        "gaussian-network": GaussianPolicy(3, 2, scale="network", **small),
        "gaussian-detached": GaussianPolicy(3, 2, scale="detached", **small),
        "gaussian-tempered": GaussianPolicy(3, 2, scale="tempered", **small),
        "gaussian-separate": GaussianPolicy(3, 2, scale="separate", **small),
        "full-gaussian": FullGaussianPolicy(3, 2, **small),
        "mixture": MixturePolicy(3, 2, components=3, **small),
        "categorical": CategoricalPolicy(3, 4, **small),
        "mahalanobis": Mahalanobis(2, "full", 1.5),
        "rbf": RBF(2, "diagonal", 1.5),
        "reward-matrix": RewardMatrix(torch.randn(3, 3, generator=generator)),
        "neural-reward": NeuralReward(2, 3, generator=generator, hidden=(4,)),
        "policy-gradient": PolicyGradient(Mahalanobis(2, "diagonal", 1.5)),
    }


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_come_back(name: str) -> None:
    module = modules()[name.removeprefix("parameters-")]
    load_parameters(FILES / f"{name}.safetensors", module)
    found, stored = of_module(module), EXPECTED[name]["says"]
    assert found.keys() == stored.keys()
    for part, (shape, *numbers) in stored.items():
        assert found[part][0] == shape
        # A bound may be infinite; in the file of answers that is text.
        assert list(map(float, found[part][1:])) == pytest.approx(list(map(float, numbers)))
