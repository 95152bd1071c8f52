"""Readers: one file a format. Each finds the columns, cuts files into spans and reads a unit; see `base.Reader`."""
