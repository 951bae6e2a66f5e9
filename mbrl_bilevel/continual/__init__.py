"""One task after another: what is kept of the earlier ones, and what is forgotten."""
