"""Build a search index: python -m jobs.index --recipe hash.index --set embeddings=DIR --set output=DIR."""

from jobs._cli import job, main
from pipelines.index import IndexConfig, index

command = job("index", IndexConfig, index)

if __name__ == "__main__":
    main(command)
