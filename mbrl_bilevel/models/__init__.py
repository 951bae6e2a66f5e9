"""Fitted models: of dynamics, of a regression, of classes, and scikit-learn's face of these."""
