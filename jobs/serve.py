"""Serve an index over HTTP: a search page at /, POST /v1/search, and POST /v1/embeddings for any OpenAI client."""

from __future__ import annotations

import sys
from pathlib import Path

# Run as `python jobs/serve.py`, a script's own folder comes first on the path, not the checkout's root.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from jobs._cli import job, main
from pipelines.serve import serve
from rayvec.serving.config import ServeConfig

command = job("serve", ServeConfig, serve)

if __name__ == "__main__":
    main(command)
