"""The versions of an index, for people: list them, go back, remove old ones, verify the live one, compare two."""
