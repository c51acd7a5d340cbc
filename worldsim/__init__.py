"""A learned video world model with long memory, as a Gymnasium environment."""
