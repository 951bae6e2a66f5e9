"""Tasks, rules, data sets and the true simulator behind a model's face."""
