"""What is known of a task: when it ends, what it pays, and its true simulator behind a model's face."""
