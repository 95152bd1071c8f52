"""What a failure of storage means, and what is to be told of it: a full disk, no permission, a lost network, or damage.

Knows errors of the operating system and of the object stores' clients. Opens nothing.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from rayvec.errors import StorageError, UserError
from rayvec.uris import is_local

#: No space, no quota, or no larger file allowed.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: The disk, or the network to it, failed.
_DEVICE = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV)
#: What is mounted from a bucket or another machine may have no locks, and no hard links (of FAT the system says EPERM).
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
#: No machine has so many bytes of memory: a file that asks for more at once is damaged where it says how much follows.
_NO_MEMORY = 1 << 40
_REFUSED = {"reading": ("read", "check its permissions"), "writing": ("written", "choose another output")}

_NO_BUCKET = "there is no such bucket; create it, or name another one"
_DENIED = "the store refuses access; check its credentials, and what they may do"
_UNREACHABLE = "the store cannot be reached; check the network, and AWS_ENDPOINT_URL if it is set; then run again"
_FULL = "the store has no space left; free some and run the same command again"
#: What the stores' clients write, each with what is to be told; the first that is in the message counts.
_CURES = {
    "NO_SUCH_BUCKET": _NO_BUCKET,
    "NoSuchBucket": _NO_BUCKET,
    "' not found": _NO_BUCKET,
    "ACCESS_DENIED": _DENIED,
    "AccessDenied": _DENIED,
    "INVALID_ACCESS_KEY_ID": _DENIED,
    "InvalidAccessKeyId": _DENIED,
    "SIGNATURE_DOES_NOT_MATCH": _DENIED,
    "SignatureDoesNotMatch": _DENIED,
    "Unable to locate credentials": _DENIED,
    "HTTP response code 403": _DENIED,
    "NETWORK_CONNECTION": _UNREACHABLE,
    "Could not connect to the endpoint": _UNREACHABLE,
    "Could not resolve host": _UNREACHABLE,
    "timed out": _UNREACHABLE,
    "InsufficientStorage": _FULL,
    "XMinioStorageFull": _FULL,
    "QuotaExceeded": _FULL,
}
_ELSE = "the store failed; run the same command again to go on"
#: What pyarrow writes when a store, not a file's content, is at fault.
_OF_STORES = ("AWS Error", "To create buckets", "google::cloud", "Azure", "curlCode")


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
        if error.errno in _NO_ROOM or _is_cut_short(error):
            raise StorageError(f"no space left writing {uri}; free some and run the same command again") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            done, cure = _REFUSED[doing]
            raise StorageError(f"{uri} may not be {done} ({error.strerror}); {cure}") from error
        if error.errno in _DEVICE:
            raise StorageError(f"{doing} {uri} failed ({error.strerror}); check the disk and run again") from error
        if error.errno in _TOO_MANY:
            raise StorageError(f"{doing} {uri} failed ({error.strerror}); raise `ulimit -n` and run again") from error
        if not is_local(uri):
            raise of_store(str(uri), error) from error
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
    return type(error) is not OSError or error.errno is not None or _is_of_store(error)


def _is_of_store(error: BaseException) -> bool:
    """Whether a store or its network is at fault, and not what a file holds."""
    return any(sign in str(error) for sign in _OF_STORES)


def of_store(uri: str, error: BaseException) -> StorageError:
    """The error to raise for what a store's client raised: one line with the URI and the cure."""
    text = " ".join(str(error).split())
    cure = next((cure for sign, cure in _CURES.items() if sign in text), _ELSE)
    told = StorageError(f"{uri}: {cure} ({text[:300]})")
    told.brief = f"{uri}: {cure}"
    return told


def without_links(place: str | Path, error: OSError) -> StorageError | None:
    """The error to raise where a hard link failed because this file system has none."""
    return without(place, "hard links", error) if error.errno in _NO_LINKS else None


def without(place: str | Path, what: str, error: OSError) -> StorageError:
    """The error to raise where a file system lacks what keeps two runs apart."""
    return StorageError(
        f"the file system of {place} has no {what} ({error.strerror}), which keep two runs apart; choose a folder on "
        "another one, or, where it is a mounted bucket, give the bucket's own URI"
    )
