"""A user's own images: their table, what is wrong with them, and a first configuration."""
