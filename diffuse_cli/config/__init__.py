"""Options of each command, as frozen dataclasses.

Names of table entries (`--schedule cosine`) are checked where their table is looked up.
"""
