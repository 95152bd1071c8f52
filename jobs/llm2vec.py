"""The whole line: python -m jobs.llm2vec --recipe tiny.line --set corpus.path=… --set output=DIR."""

from __future__ import annotations

import sys
from pathlib import Path

# Run as `python jobs/llm2vec.py`, a script's own folder comes first on the path, not the checkout's root.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from jobs._cli import job, main
from pipelines.llm2vec import LineConfig, llm2vec

command = job("llm2vec", LineConfig, llm2vec)

if __name__ == "__main__":
    main(command)
