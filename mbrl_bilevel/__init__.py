"""A model-based RL suite that learns dynamics by an inferred reward instead of by likelihood.

What a user needs is exported here and loads on first use: ``from mbrl_bilevel import fit_dynamics``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mbrl_bilevel.base.lazy import exports

if TYPE_CHECKING:
    from mbrl_bilevel.base.errors import BilevelError as BilevelError
    from mbrl_bilevel.base.errors import InvalidInputError as InvalidInputError
    from mbrl_bilevel.base.known_rules import KnownRules as KnownRules
    from mbrl_bilevel.base.records import FitResult as FitResult
    from mbrl_bilevel.base.records import Rule as Rule
    from mbrl_bilevel.base.records import Step as Step
    from mbrl_bilevel.base.records import Transitions as Transitions
    from mbrl_bilevel.continual.learner import Learner as Learner
    from mbrl_bilevel.continual.recipes import get_recipe as get_recipe
    from mbrl_bilevel.continual.sequence import Transfer as Transfer
    from mbrl_bilevel.continual.sequence import transfer as transfer
    from mbrl_bilevel.data.splits import FitData as FitData
    from mbrl_bilevel.data.splits import cross_fit as cross_fit
    from mbrl_bilevel.evaluation.dynamics import evaluate_one_step as evaluate_one_step
    from mbrl_bilevel.evaluation.dynamics import evaluate_open_loop as evaluate_open_loop
    from mbrl_bilevel.imagination.environments import ImaginedEnv as ImaginedEnv
    from mbrl_bilevel.imagination.environments import ImaginedVecEnv as ImaginedVecEnv
    from mbrl_bilevel.imagination.environments import ImaginedVectorEnv as ImaginedVectorEnv
    from mbrl_bilevel.imagination.particles import StepModel as StepModel
    from mbrl_bilevel.imagination.particles import imagined_returns as imagined_returns
    from mbrl_bilevel.imagination.particles import imagined_trajectories as imagined_trajectories
    from mbrl_bilevel.imagination.settings import Branching as Branching
    from mbrl_bilevel.imagination.settings import Imagination as Imagination
    from mbrl_bilevel.inner.estimators import DiCE as DiCE
    from mbrl_bilevel.inner.estimators import LeaveOneOut as LeaveOneOut
    from mbrl_bilevel.inner.estimators import Pathwise as Pathwise
    from mbrl_bilevel.inner.losses import MSE as MSE
    from mbrl_bilevel.inner.losses import NLL as NLL
    from mbrl_bilevel.inner.losses import BetaNLL as BetaNLL
    from mbrl_bilevel.inner.losses import PolicyGradient as PolicyGradient
    from mbrl_bilevel.inner.rewards import RBF as RBF
    from mbrl_bilevel.inner.rewards import Mahalanobis as Mahalanobis
    from mbrl_bilevel.inner.rewards import NeuralReward as NeuralReward
    from mbrl_bilevel.inner.rewards import RewardMatrix as RewardMatrix
    from mbrl_bilevel.models.dynamics import DynamicsModel as DynamicsModel
    from mbrl_bilevel.models.dynamics import fit_dynamics as fit_dynamics
    from mbrl_bilevel.models.dynamics_checkpoint import load_model as load_model
    from mbrl_bilevel.models.dynamics_checkpoint import save_model as save_model
    from mbrl_bilevel.models.regression import Regression as Regression
    from mbrl_bilevel.models.regression import fit_regression as fit_regression
    from mbrl_bilevel.models.sklearn import BilevelClassifier as BilevelClassifier
    from mbrl_bilevel.models.sklearn import BilevelRegressor as BilevelRegressor
    from mbrl_bilevel.outer.closed_form import ClosedForm as ClosedForm
    from mbrl_bilevel.outer.function_space import FunctionSpace as FunctionSpace
    from mbrl_bilevel.outer.implicit import ExactImplicit as ExactImplicit
    from mbrl_bilevel.outer.implicit import FisherImplicit as FisherImplicit
    from mbrl_bilevel.outer.implicit import Neumann as Neumann
    from mbrl_bilevel.outer.level import Outer as Outer
    from mbrl_bilevel.outer.unrolled import Unrolled as Unrolled
    from mbrl_bilevel.policies.policies import CategoricalPolicy as CategoricalPolicy
    from mbrl_bilevel.policies.policies import FullGaussianPolicy as FullGaussianPolicy
    from mbrl_bilevel.policies.policies import GaussianPolicy as GaussianPolicy
    from mbrl_bilevel.policies.policies import MixturePolicy as MixturePolicy
    from mbrl_bilevel.training.fit import fit as fit
    from mbrl_bilevel.training.method import Method as Method
    from mbrl_bilevel.training.methods import METHODS as METHODS
    from mbrl_bilevel.training.methods import get_method as get_method
    from mbrl_bilevel.training.methods import register_method as register_method
    from mbrl_bilevel.training.settings import Schedule as Schedule
    from mbrl_bilevel.training.settings import WarmStart as WarmStart
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "mbrl_bilevel.base.errors": ("BilevelError", "InvalidInputError"),
            "mbrl_bilevel.base.known_rules": ("KnownRules",),
            "mbrl_bilevel.base.records": ("FitResult", "Rule", "Step", "Transitions"),
            "mbrl_bilevel.continual.learner": ("Learner",),
            "mbrl_bilevel.continual.recipes": ("get_recipe",),
            "mbrl_bilevel.continual.sequence": ("Transfer", "transfer"),
            "mbrl_bilevel.data.splits": ("FitData", "cross_fit"),
            "mbrl_bilevel.evaluation.dynamics": ("evaluate_one_step", "evaluate_open_loop"),
            "mbrl_bilevel.imagination.environments": (
                "ImaginedEnv",
                "ImaginedVecEnv",
                "ImaginedVectorEnv",
            ),
            "mbrl_bilevel.imagination.particles": (
                "StepModel",
                "imagined_returns",
                "imagined_trajectories",
            ),
            "mbrl_bilevel.imagination.settings": ("Branching", "Imagination"),
            "mbrl_bilevel.inner.estimators": ("DiCE", "LeaveOneOut", "Pathwise"),
            "mbrl_bilevel.inner.losses": ("MSE", "NLL", "BetaNLL", "PolicyGradient"),
            "mbrl_bilevel.inner.rewards": ("RBF", "Mahalanobis", "NeuralReward", "RewardMatrix"),
            "mbrl_bilevel.models.dynamics": ("DynamicsModel", "fit_dynamics"),
            "mbrl_bilevel.models.dynamics_checkpoint": ("load_model", "save_model"),
            "mbrl_bilevel.models.regression": ("Regression", "fit_regression"),
            "mbrl_bilevel.models.sklearn": ("BilevelClassifier", "BilevelRegressor"),
            "mbrl_bilevel.outer.closed_form": ("ClosedForm",),
            "mbrl_bilevel.outer.function_space": ("FunctionSpace",),
            "mbrl_bilevel.outer.implicit": ("ExactImplicit", "FisherImplicit", "Neumann"),
            "mbrl_bilevel.outer.level": ("Outer",),
            "mbrl_bilevel.outer.unrolled": ("Unrolled",),
            "mbrl_bilevel.policies.policies": (
                "CategoricalPolicy",
                "FullGaussianPolicy",
                "GaussianPolicy",
                "MixturePolicy",
            ),
            "mbrl_bilevel.training.fit": ("fit",),
            "mbrl_bilevel.training.method": ("Method",),
            "mbrl_bilevel.training.methods": ("METHODS", "get_method", "register_method"),
            "mbrl_bilevel.training.settings": ("Schedule", "WarmStart"),
        },
    )
