"""Serve an index over HTTP: a search page at /, POST /v1/search, and POST /v1/embeddings for any OpenAI client."""

from jobs._cli import job, main
from pipelines.serve import serve
from rayvec.serving.config import ServeConfig

command = job("serve", ServeConfig, serve)

if __name__ == "__main__":
    main(command)
