"""The outer level: what infers the reward, by which objective, with which hypergradient."""
