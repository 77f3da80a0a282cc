"""Fast ways to compute norms, dropout and attention; each the same function as the plain one."""
