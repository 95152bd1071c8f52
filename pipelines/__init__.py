"""Pipelines: the packages of rayvec wired into one dataflow each, on Ray. Each takes a Config and returns a Report."""
