"""What every agent needs: experience, spaces, callbacks, random states, saved files."""
