"""Storage: files at a URI through pyarrow.fs, write-then-rename, put-if-absent, checksums, manifests, fingerprints.

A URI is a local path or anything `pyarrow.fs.FileSystem.from_uri` or fsspec opens (s3://, gs://, …). Knows bytes and
JSON. Knows no document, no model, no Ray.
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
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.fs as pafs

from rayvec import object_stores
from rayvec.config import Config
from rayvec.errors import MismatchError, StorageError, UserError, VerificationError

CHUNK = 8 << 20
#: Object stores that pyarrow speaks to itself, and what it is told: of Google's it would wait a quarter of an hour.
_NATIVE = {"s3": "", "gs": "?retry_limit_seconds=60", "gcs": "?retry_limit_seconds=60"}
#: Of a request, with growing pauses: some seconds of trouble on the way are lived through.
_S3_ATTEMPTS = 5
#: No space, no quota, or no larger file allowed.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: The disk, or the network to it, failed.
_DEVICE = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV)
#: What is mounted from a bucket or another machine may have no locks, and no hard links (of FAT the system says EPERM).
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
#: No machine has so many bytes of memory: a file that asks for more at once is damaged where it says how much follows.
_NO_MEMORY = 1 << 40
_REFUSED = {"reading": ("read", "check its permissions"), "writing": ("written", "choose another output")}
JsonObject = dict[str, Any]


def is_local(uri: str | Path) -> bool:
    """Whether the URI is a path of this machine's file system."""
    return "://" not in str(uri) or str(uri).startswith("file://")


def local_path(uri: str | Path) -> Path:
    """The path of a local URI."""
    return Path(str(uri).removeprefix("file://")).expanduser()


def join(uri: str | Path, *parts: str) -> str:
    """Join parts to a URI with single slashes."""
    return "/".join([str(uri).rstrip("/"), *(part.strip("/") for part in parts)])


def name_of(uri: str | Path) -> str:
    """The last part of a URI."""
    return str(uri).rstrip("/").rpartition("/")[2]


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
        raise object_stores.failure(uri, error) from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(fs)), path


@contextlib.contextmanager
def storage_errors(uri: str | Path, doing: Literal["reading", "writing"] = "writing") -> Iterator[None]:
    """Turn the refusals of the operating system, or of an object store, into a StorageError that says what to do.

    FileNotFoundError and FileExistsError stay what they are, for many callers an answer; so does what pyarrow says of a
    damaged file, an OSError without a number.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except MemoryError as error:
        if doing == "writing":  # what is written is made meanwhile, and may be what needs too much
            raise
        raise StorageError(f"there is too little memory to read {uri}; give the process more, and run again") from error
    except OSError as error:
        if error.errno in _FULL or _is_cut_short(error):
            raise StorageError(f"no space left writing {uri}; free some and run the same command again") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            done, cure = _REFUSED[doing]
            raise StorageError(f"{uri} may not be {done} ({error.strerror}); {cure}") from error
        if error.errno in _DEVICE:
            raise StorageError(f"{doing} {uri} failed ({error.strerror}); check the disk and run again") from error
        if error.errno in _TOO_MANY:
            raise StorageError(f"{doing} {uri} failed ({error.strerror}); raise `ulimit -n` and run again") from error
        if not is_local(uri):
            raise object_stores.failure(str(uri), error) from error
        if error.errno == errno.ENOTDIR:
            raise UserError(f"{uri} lies below a file, where there can be no folder; give another path") from error
        if error.errno in (None, errno.EEXIST):
            raise
        raise StorageError(f"{doing} {uri} failed ({error.strerror}); see to its file system and run again") from error


@contextlib.contextmanager
def input_errors(uri: str | Path) -> Iterator[None]:
    """`storage_errors` of a file that was listed: that it is not there any more is a failure too."""
    try:
        with storage_errors(uri, "reading"):
            yield
    except FileNotFoundError as error:
        raise StorageError(f"{uri} has gone since it was listed; put it back and run again") from error


def _is_cut_short(error: OSError) -> bool:
    """Whether numpy could not write all of an array: it does not say why, and that there was no room is likeliest."""
    return error.errno is None and re.fullmatch(r"\d+ requested and \d+ written", str(error)) is not None


def is_storage_fault(error: BaseException) -> bool:
    """Whether the machine, the disk, the store or the network failed, rather than that a file holds what is no data.

    Of what a file holds, pyarrow raises OSErrors with neither a number nor a class of their own; all others are of the
    operating system, or of an fsspec package (those of `requests`, httpx and aiohttp for a lost network, too).
    """
    if isinstance(error, MemoryError):
        return not any(int(size) > _NO_MEMORY for size in re.findall(r"\d+", str(error)))
    if not isinstance(error, OSError):
        return False
    return type(error) is not OSError or error.errno is not None or object_stores.is_failure(error)


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
    if fs.get_file_info(path).type == pafs.FileType.File:
        names = [""]
    else:
        names = sorted(list_tree(source), key=lambda name: name == last)
    if not names:
        raise FileNotFoundError(f"{source} is not there, or is empty")
    with storage_errors(target):
        for name in names:
            place = f"{to}/{name}".rstrip("/")
            other.create_dir(place.rpartition("/")[0], recursive=True)
            pafs.copy_files(f"{path}/{name}".rstrip("/"), place, fs, other, use_threads=False)


def delete_tree(uri: str | Path) -> None:
    """Remove a folder and all in it; nothing happens when it is not there."""
    fs, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError), storage_errors(uri):
        fs.delete_dir(path)


def absolute(uri: str | Path) -> str:
    """The same place, whatever folder a worker runs in: local paths become absolute, other URIs stay."""
    return str(local_path(uri).absolute()) if is_local(uri) else str(uri)


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
        if error.errno in _NO_LINKS:
            raise _lacks(path, "hard links", error) from error
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
        raise _lacks(place, "locks", error) from error


def _lacks(place: str | Path, what: str, error: OSError) -> StorageError:
    return StorageError(
        f"the file system of {place} has no {what} ({error.strerror}), which keep two runs apart; choose a folder on "
        "another one, or, where it is a mounted bucket, give the bucket's own URI"
    )


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
        try:
            value = json.loads(read_bytes(uri))
        except ValueError:
            if is_local(uri):
                raise
            # Of an object that grew between pyarrow's two requests, its size and its bytes, the end is missing.
            value = json.loads(read_bytes(uri))
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


class Fingerprint(Config):
    """What an encoder is: everything that moves its vectors. Two encoders are the same when all fields are equal."""

    weights: str
    tokenizer: str
    attention: str
    pooling: str
    prompts: str
    max_length: int
    normalize: bool
    dim: int

    @property
    def short(self) -> str:
        """Sixteen hex digits that stand for the whole."""
        return self.digest()

    def require(self, other: Fingerprint, *, mine: str, theirs: str) -> None:
        """Raise MismatchError naming every differing field, unless `other` is the same encoder."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in type(self).model_fields)
        differing = [f"{name} ({mine}: {a}, {theirs}: {b})" for name, a, b in pairs if a != b]
        if differing:
            raise MismatchError(
                f"{mine} and {theirs} are not of the same encoder: they differ in {'; '.join(differing)}. "
                "Use the encoder that made them, or make them again with this one"
            )
