"""Failures of storage: what is the machine's and what is the file's, and what is told of them."""

from __future__ import annotations

import errno
import os

import httpx
import pyarrow as pa
import pytest
from fsspec.exceptions import FSTimeoutError
from huggingface_hub.errors import HfHubHTTPError

from rayvec.errors import StorageError
from rayvec.failures import input_errors, is_storage_fault

TOO_MANY = httpx.Response(429, request=httpx.Request("GET", "https://huggingface.co"))


def failed(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    "error",
    [
        failed(errno.EIO),
        failed(errno.EMFILE),
        failed(errno.EACCES),
        failed(errno.ENOENT),
        pa.ArrowMemoryError("malloc of size 64 failed"),
        MemoryError(),
        OSError("AWS Error NETWORK_CONNECTION during GetObject operation"),
        HfHubHTTPError("429 Too Many Requests", response=TOO_MANY),
        FSTimeoutError(),
    ],
    ids=repr,
)
def test_what_machine_and_network_raise_is_no_damage(error: Exception) -> None:
    assert is_storage_fault(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError("Corrupt snappy compressed data."),
        pa.ArrowInvalid("not a Parquet file"),
        pa.ArrowMemoryError("malloc of size 18014398509571840 failed"),  # a length of which a bit has turned
    ],
    ids=repr,
)
def test_what_pyarrow_says_of_a_damaged_file_is_damage(error: Exception) -> None:
    assert not is_storage_fault(error)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (failed(errno.EMFILE), r"reading /f failed \(Too many open files\); raise `ulimit -n`"),
        (failed(errno.EACCES), "/f may not be read"),
        (failed(errno.ELOOP), r"reading /f failed \(Too many levels of symbolic links\)"),
        (failed(errno.ENOENT), "/f has gone since it was listed; put it back"),
        (pa.ArrowMemoryError("malloc of size 64 failed"), "there is too little memory to read /f"),
    ],
    ids=repr,
)
def test_an_input_that_cannot_be_read_is_told_in_one_line(error: Exception, told: str) -> None:
    with pytest.raises(StorageError, match=f"^{told}"), input_errors("/f"):
        raise error
