"""The page of an evaluation: one HTML file that needs nothing else, with no script in it."""
