"""The agent that acts by policy and by plan, and what it is made of."""
