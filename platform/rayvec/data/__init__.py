"""Input: sources of documents, pairs, collators, and readers of embeddings. Knows no model and no Ray."""
