"""Other registries: which one a name means, and how to ask it."""
