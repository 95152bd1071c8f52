"""Models: any decoder made bidirectional, pooled into vectors. Pure torch and transformers; knows no Ray."""
