"""Off-policy learners that an agent holds: Stable-Baselines3's, and a faster SAC."""
