"""From published files to the prepared images and the roles that they play."""
