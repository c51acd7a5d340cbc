"""Real environments as Gymnasium environments."""
