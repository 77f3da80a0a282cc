"""What each command can be asked to do, as frozen dataclasses of options.

Names of table entries (`--schedule cosine`) are checked where their table is looked up.
"""
