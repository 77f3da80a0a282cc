"""Fast norms, dropout and attention; the same functions as the plain ones."""
