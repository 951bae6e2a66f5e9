"""Ground truth: inner problems fully solved, and the catalogue of them that every solver is checked on."""
