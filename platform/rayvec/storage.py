"""Storage: files at a URI through pyarrow.fs, write-then-rename, put-if-absent, checksums, manifests.

Knows bytes and JSON. Knows no document, no model, no Ray.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from rayvec import object_stores
from rayvec.errors import StorageError, UserError, VerificationError
from rayvec.failures import of_store, storage_errors, without, without_links
from rayvec.uris import is_local, local_path

CHUNK = 8 << 20
#: Object stores that pyarrow speaks to itself, and what it is told: of Google's it would wait a quarter of an hour.
_NATIVE = {"s3": "", "gs": "?retry_limit_seconds=60", "gcs": "?retry_limit_seconds=60"}
#: Of a request, with growing pauses: some seconds of trouble on the way are lived through.
_S3_ATTEMPTS = 5
JsonObject = dict[str, Any]


def filesystem(uri: str | Path) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system of a URI, and the path inside it."""
    if is_local(uri):
        return pafs.LocalFileSystem(), str(local_path(uri).absolute())
    scheme, _, path = str(uri).partition("://")
    if scheme in _NATIVE:
        # The key is taken as it stands: in a URI that is parsed, `?`, `#`, `%` and spaces would mean something else.
        bucket = path.partition("/")[0]
        with storage_errors(uri):
            return _bucket(scheme, bucket, object_stores.s3_endpoint()), path
    try:
        return pafs.FileSystem.from_uri(str(uri))
    except (ValueError, OSError) as error:
        return _fsspec(str(uri), error)


@functools.lru_cache(maxsize=64)
def _bucket(scheme: str, name: str, endpoint: str) -> pafs.FileSystem:
    """Made once a process and bucket, since making it asks where the bucket is."""
    try:
        fs = pafs.FileSystem.from_uri(f"{scheme}://{name}{_NATIVE[scheme]}")[0]
        if scheme == "s3":  # delayed: one request writes a small file, where three would
            fs = pafs.S3FileSystem(
                region=fs.region,
                endpoint_override=endpoint or None,
                allow_delayed_open=True,
                retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS),
            )
        return fs
    except ValueError as error:
        raise UserError(f"{scheme}://{name} names no bucket: {error}") from None


def _fsspec(uri: str, first_error: Exception) -> tuple[pafs.FileSystem, str]:
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise UserError(f"cannot open {uri}: {first_error}; {error}") from None
    except OSError as error:
        raise of_store(uri, error) from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(fs)), path


def exists(uri: str | Path) -> bool:
    """Whether a file or folder is there."""
    return info(uri).type != pafs.FileType.NotFound


def info(uri: str | Path) -> pafs.FileInfo:
    """What is there: a file, a folder or nothing; of a file its size and time."""
    fs, path = filesystem(uri)
    with storage_errors(uri, "reading"):
        return fs.get_file_info(path)


def list_infos(uri: str | Path, *, recursive: bool = False) -> list[pafs.FileInfo]:
    """What lies in a folder, directly or anywhere below; empty when the folder is not there."""
    fs, path = filesystem(uri)
    with storage_errors(uri, "reading"):
        return fs.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=recursive))


def size(uri: str | Path) -> int:
    """Bytes of a file; -1 when it is not there."""
    found = info(uri)
    return int(found.size) if found.type == pafs.FileType.File else -1


def list_names(uri: str | Path) -> list[str]:
    """Names of the files and folders directly in a folder, sorted; empty when it is not there."""
    return sorted(found.base_name for found in list_infos(uri))


def list_sizes(uri: str | Path) -> dict[str, int]:
    """Name and bytes of each file directly in a folder, by one listing; empty when it is not there."""
    return {found.base_name: int(found.size) for found in list_infos(uri) if found.type == pafs.FileType.File}


def list_tree(uri: str | Path) -> dict[str, int]:
    """Bytes of each file anywhere below a folder, by its path in it, sorted; empty when the folder is not there."""
    _, path = filesystem(uri)
    infos = [found for found in list_infos(uri, recursive=True) if found.type == pafs.FileType.File]
    return dict(sorted((found.path[len(path) :].strip("/"), int(found.size)) for found in infos))


def copy_tree(source: str | Path, target: str | Path, *, last: str = "") -> None:
    """Copy a file, or all files below a folder; the file `last`, which stands for the whole, goes last.

    Raises FileNotFoundError when the source is not there.
    """
    (fs, path), (other, to) = filesystem(source), filesystem(target)
    if info(source).type == pafs.FileType.File:
        names = [""]
    else:
        names = sorted(list_tree(source), key=lambda name: name == last)
    if not names:
        raise FileNotFoundError(f"{source} is not there, or is empty")
    # Of what stands at the target first: a full disk is the target's, and what a store says has no number.
    with storage_errors(source, "reading"), storage_errors(target):
        for name in names:
            place = f"{to}/{name}".rstrip("/")
            other.create_dir(place.rpartition("/")[0], recursive=True)
            pafs.copy_files(f"{path}/{name}".rstrip("/"), place, fs, other, use_threads=False)


def cache_folder(kind: str, uri: str) -> Path:
    """Where this machine keeps a copy of what lies at a URI, in the user's cache (XDG_CACHE_HOME, or ~/.cache)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute()
    place = f"{object_stores.s3_endpoint()} {uri}" if uri.startswith("s3://") else uri
    return cache / "rayvec" / kind / sha256_bytes(place.rstrip("/").encode())[:16]


def delete_tree(uri: str | Path) -> None:
    """Remove a folder and all in it; nothing happens when it is not there."""
    fs, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError), storage_errors(uri):
        fs.delete_dir(path)


def delete(uri: str | Path) -> None:
    """Remove a file; nothing happens when it is not there."""
    fs, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError), storage_errors(uri):
        fs.delete_file(path)


def make_folder(uri: str | Path) -> None:
    """Make a folder and its parents; nothing happens when it is there."""
    fs, path = filesystem(uri)
    with storage_errors(uri):
        fs.create_dir(path, recursive=True)


def read_bytes(uri: str | Path) -> bytes:
    """The whole of a file. Raises FileNotFoundError."""
    fs, path = filesystem(uri)
    try:
        # By default pyarrow decompresses what is called .gz; a file is its bytes, whatever its name.
        with storage_errors(uri, "reading"), fs.open_input_stream(path, compression=None) as stream:
            return stream.read()
    except StorageError:
        # pyarrow asks a store for the size and then for the bytes: of an object deleted in between it tells no cause.
        if is_local(uri) or exists(uri):
            raise
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(uri)) from None


def write_bytes(uri: str | Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file so that a reader sees the old content or the new, never a part (temporary file, fsync, rename).

    `durable=False` leaves out the fsync: the file then outlives its process, but perhaps not a power cut.
    """
    if not is_local(uri):
        fs, remote = filesystem(uri)
        with storage_errors(uri), fs.open_output_stream(remote, compression=None) as stream:
            stream.write(data)
        return
    path = local_path(uri)
    with storage_errors(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            _write_synced(temporary, data) if durable else temporary.write_bytes(data)
            temporary.replace(path)
            if durable:
                sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def put_if_absent(uri: str | Path, data: bytes) -> bool:
    """Write a file only if none is there; False when another writer was first. The content appears whole.

    On an object store it is the store that decides (see object_stores.put_if_absent, and for what it raises). In a
    folder it is a hard link: a rename would replace another's file. Raises StorageError where there are none.
    """
    if not is_local(uri):
        return object_stores.put_if_absent(str(uri), data)
    path = local_path(uri)
    with storage_errors(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            _write_synced(temporary, data)
            _link(temporary, path)
            sync_folder(path.parent)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
    return True


def _link(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except OSError as error:
        if lacking := without_links(path, error):
            raise lacking from error
        raise


def lock(descriptor: int, place: str | Path) -> None:
    """Lock an open file of this place, until it is closed, against other processes.

    Raises BlockingIOError when another holds it, StorageError where the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        raise without(place, "locks", error) from error


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(path: Path) -> None:
    """Make a rename in this folder survive a power cut (POSIX asks for an fsync of the folder itself)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(uri: str | Path) -> JsonObject:
    """A JSON object. Raises FileNotFoundError, or VerificationError when the file is not a JSON object."""
    try:
        return parse_json(read_bytes(uri), uri)
    except VerificationError:
        if is_local(uri):
            raise
        # Of an object that grew between pyarrow's two requests, its size and its bytes, the end is missing.
        return parse_json(read_bytes(uri), uri)


def parse_json(data: bytes, uri: str | Path) -> JsonObject:
    """The JSON object that a file holds. Raises VerificationError when it holds another thing."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise VerificationError(f"{uri} is not valid JSON ({error}); it was damaged or not written by rayvec") from None
    if not isinstance(value, dict):
        raise VerificationError(f"{uri} holds no JSON object; it was damaged or not written by rayvec")
    return value


def write_json(uri: str | Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    write_bytes(uri, to_json(value))


def write_parquet(uri: str | Path, table: pa.Table, row_group_rows: int = 4096) -> None:
    """Write a table as Parquet with page checksums, whole or not at all."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=row_group_rows, compression="zstd", write_page_checksum=True)
    write_bytes(uri, buffer.getvalue())


def to_json(value: Mapping[str, Any]) -> bytes:
    """Readable JSON with a final newline."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(uri: str | Path) -> str:
    """Hex SHA-256 of a file, read in chunks."""
    fs, path = filesystem(uri)
    digest = hashlib.sha256()
    with storage_errors(uri, "reading"), fs.open_input_stream(path, compression=None) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_file(uri: str | Path, *, bytes_: int, sha256: str) -> None:
    """Raise VerificationError when a file is missing, or its size or checksum is not what the manifest says."""
    found = size(uri)
    if found < 0:
        raise VerificationError(f"{uri} is missing; restore it or build it again")
    if found != bytes_:
        raise VerificationError(f"{uri} has {found} bytes where its manifest says {bytes_}; restore or rebuild it")
    if sha256_file(uri) != sha256:
        raise VerificationError(f"{uri} does not match its checksum; it was damaged: restore it or build it again")


@contextlib.contextmanager
def committed_folder(final: Path) -> Iterator[Path]:
    """A temporary folder that becomes `final` by rename when the block ends well, and is removed when it does not.

    A finished folder that is there already is replaced. Local only: object stores have no rename of folders.
    """
    final = final.absolute()
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")
    with storage_errors(final):
        temporary.mkdir()
        try:
            yield temporary
            if final.exists():
                old = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.old")
                final.rename(old)
                temporary.rename(final)
                shutil.rmtree(old)
            else:
                temporary.rename(final)
            sync_folder(final.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
