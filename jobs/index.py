"""python -m jobs.index: build a search index over embeddings."""

from jobs._cli import job, main
from pipelines.index import IndexConfig, index

command = job("index", IndexConfig, index)

if __name__ == "__main__":
    main(command)
