"""star."""
