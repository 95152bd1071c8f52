"""Encoding: a corpus in, one vector a document out, exactly once. Units, stages, the sink that commits."""
