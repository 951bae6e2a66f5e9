"""What everything rests on: one exception family, records with shapes, files whole or not at all."""
