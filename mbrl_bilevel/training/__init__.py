"""The one training loop, and the named methods that are values of its slots."""
