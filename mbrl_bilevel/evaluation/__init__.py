"""How good a model is: errors, likelihoods, calibration, and statistics over repeats."""
