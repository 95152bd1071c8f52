"""References: the name of a model, made a folder of this machine. Embedded names, folders, URIs, Hugging Face ids.

A Hugging Face id may name one revision (a commit, a tag, a branch), as "org/model@1a2b3c": then it stays what it is.

Knows folders and hashes of weight files. Loads no model.
"""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path, PurePosixPath

from rayvec import assets, storage, uris
from rayvec.errors import UserError

EMBEDDED = "embedded:"
ALIASES = {"tiny": "tiny-encoder"}
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w.-]+))?")
# What of a repository is needed: no pickled weights, no copies in other formats.
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "adapters/*", "tokenizer*"]
WEIGHTS = "*.safetensors"


def resolve(reference: str | Path, *, weights: bool = True) -> Path:
    """The folder a reference names; fetched first where it is remote. Raises UserError when there is none.

    weights: whether the weights are fetched too.
    """
    text = str(reference)
    name = ALIASES.get(text, text).removeprefix(EMBEDDED)
    if name in assets.NAMES or text.startswith(EMBEDDED):
        return assets.path(name)
    if uris.is_local(text):
        path = uris.local_path(text)
        if path.is_dir():
            return path
        if not HUB_ID.fullmatch(text) or path.exists():
            raise UserError(
                f"no model at {text}: there is no such folder; give the folder that a training job or save() wrote, a "
                "folder of a transformers model, a Hugging Face id, tiny or hash"
            )
        return _from_hub(text, weights)
    return _fetched(text, weights)


def canonical(reference: str | Path) -> str:
    """How a manifest names this reference: embedded models by name, folders by absolute path, all else as it is."""
    text = str(reference)
    name = ALIASES.get(text, text).removeprefix(EMBEDDED)
    if name in assets.NAMES:
        return EMBEDDED + name
    if not uris.is_local(text) or not uris.local_path(text).is_dir():
        return text
    path = uris.local_path(text).resolve()
    own = Path(assets.__file__).resolve().parent
    return EMBEDDED + path.name if path.parent == own and path.name in assets.NAMES else str(path)


def hub_parts(reference: str) -> tuple[str, str | None]:
    """A Hugging Face id without its revision, and the revision, if it names one; any other reference as it is.

    >>> hub_parts("org/model@v1.0"), hub_parts("org/model"), hub_parts("/models/a@b")
    (('org/model', 'v1.0'), ('org/model', None), ('/models/a@b', None))
    """
    found = HUB_ID.fullmatch(reference)
    return (found[1], found[2]) if found else (reference, None)


def portable(reference: str | Path) -> str | None:
    """The reference as it can be given to others: None for a folder of this machine.

    >>> portable("meta-llama/Meta-Llama-3-8B"), portable("/models/llama")
    ('meta-llama/Meta-Llama-3-8B', None)
    """
    text = canonical(reference)
    return None if uris.is_local(text) and uris.local_path(text).is_absolute() else text


def holds(reference: str | Path, name: str) -> bool:
    """Whether there is such a file in what a reference names; a repository of the hub is asked for that file alone."""
    text = str(reference)
    if HUB_ID.fullmatch(text) and not uris.local_path(text).exists():
        import huggingface_hub

        try:
            repository, revision = hub_parts(text)
            huggingface_hub.hf_hub_download(repository, name, revision=revision)
        except Exception:  # not there, or not reachable; then `resolve` says so
            return False
        return True
    try:
        return (resolve(text) / name).is_file()
    except UserError:
        return False


def _from_hub(name: str, weights: bool) -> Path:
    import huggingface_hub

    ignored = None if weights else [WEIGHTS]
    repository, revision = hub_parts(name)
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=ignored
            )
        )
    except Exception as error:  # the hub's client raises a dozen kinds, all of which mean: not there, or not reachable
        detail = " ".join(str(error).split())[:160]
        raise UserError(
            f"no model {name}: there is no such folder, and the Hugging Face hub does not give it ({detail}); give a "
            "folder, or fetch it where the network allows"
        ) from None


@cache
def _fetched(uri: str, weights: bool) -> Path:
    """A copy of a remote folder, for as long as this process lives."""
    import pyarrow.fs as pafs

    fs, path = storage.filesystem(uri)
    if not storage.list_names(uri):
        raise UserError(f"no model at {uri}: there is no such folder, or it is empty; check the URI")
    folder = Path(tempfile.mkdtemp(prefix="rayvec-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    there = [found for found in storage.list_infos(uri, recursive=True) if found.type == pafs.FileType.File]
    for info in there:
        if weights or not PurePosixPath(info.path).match(WEIGHTS):
            target = folder / info.path.removeprefix(path).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            pafs.copy_files(info.path, str(target), source_filesystem=fs, destination_filesystem=pafs.LocalFileSystem())
    return folder


def weights_sha256(folder: Path) -> str:
    """The hash of a model folder's weight files; for one file, its SHA-256."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{folder} holds no *.safetensors; give a folder with model.safetensors (other formats: load it with "
            "transformers and save_pretrained it)"
        )
    hashes = [_file_sha256(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashes[0] if len(hashes) == 1 else storage.sha256_bytes("+".join(hashes).encode())


@cache
def _file_sha256(path: str, size: int, modified: int) -> str:
    """Read a file once a process, as long as its size and time stay."""
    del size, modified
    return storage.sha256_file(path)
