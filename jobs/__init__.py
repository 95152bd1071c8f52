"""Verbs: what `ray job submit` names. Each parses, calls a pipeline and reports."""
