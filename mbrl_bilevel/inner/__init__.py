"""The inner level: rewards, the gradient of their expectation, and the losses made of them."""
