"""Methods of a user's own, for the tests of --import-module."""

from dataclasses import replace

from mbrl_bilevel import get_method, register_method
from mbrl_bilevel.training.class_methods import get_class_method, register_class_method

register_method("mine", replace(get_method("mse"), summary="mine"), overwrite=True)
register_class_method("mine", replace(get_class_method("nll"), summary="mine"), overwrite=True)
