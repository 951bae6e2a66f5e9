"""Generative policies p(y|x): networks, distributions and their scales."""
