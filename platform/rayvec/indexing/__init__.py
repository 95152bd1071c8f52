"""Indexing: PCA, FAISS, BM25, versions. The only package that imports faiss."""
