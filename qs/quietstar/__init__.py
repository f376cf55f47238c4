"""quietstar."""
