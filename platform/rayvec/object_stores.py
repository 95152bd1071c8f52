"""Object stores: what pyarrow leaves out, conditional writes.

pyarrow 26 has no write that fails when an object is there. S3 and what speaks its protocol (MinIO, Ceph, R2) get theirs
through boto3 (`If-None-Match: *`); Google's and Azure's through their fsspec packages' exclusive mode. Knows no local
file.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

from rayvec.errors import StorageError, UserError
from rayvec.failures import of_store

#: A store may answer "another write to this key is under way" instead of yes or no.
_CONFLICTS = 8


def put_if_absent(uri: str, data: bytes) -> bool:
    """Write an object only if none is there, decided by the store; False when one is.

    Raises UserError when the package that can is missing or the store has no such write, StorageError when it fails.
    """
    scheme = uri.partition("://")[0]
    put = _PUTS.get(scheme)
    if put is None:
        raise UserError(
            f"{uri}: rayvec knows no write-if-absent for {scheme}://, which keeps two runs apart; "
            f"choose a folder, or one of {', '.join(f'{name}://' for name in _PUTS if name != 'memory')}"
        )
    return put(uri, data)


def s3_endpoint() -> str:
    """The URL of the S3 server that the environment names; empty for Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _s3(uri: str, data: bytes) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

    client = _s3_client(s3_endpoint())
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    for attempt in range(_CONFLICTS):
        try:
            client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status == 412:
                return _was_mine(client, bucket, key, data, error)
            if status == 409:
                time.sleep(0.1 * 2**attempt)
                continue
            if status == 501:
                raise UserError(
                    f"{uri}: this store has no conditional writes; choose a folder or another store"
                ) from None
            raise of_store(uri, error) from None
        except BotoCoreError as error:
            raise of_store(uri, error) from None
        return True
    raise StorageError(f"{uri}: other writes to it do not end; see that no other run writes there, and run again")


def _was_mine(client: Any, bucket: str, key: str, data: bytes, error: Any) -> bool:
    """Whether the object that is there is the one that we sent: the answer to a first try may have been lost."""
    if not error.response["ResponseMetadata"].get("RetryAttempts"):
        return False
    there: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    return there == data


@functools.lru_cache(maxsize=4)
def _s3_client(endpoint: str) -> Any:
    """A client for the process; `endpoint` tells one configuration of the environment from another."""
    try:
        import boto3  # type: ignore[import-untyped]
    except ImportError:
        raise UserError("writing to s3:// needs boto3; install it with pip install 'rayvec[s3]'") from None
    del endpoint  # boto3 reads it itself
    return boto3.client("s3")


def _fsspec(uri: str, data: bytes) -> bool:
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        raise UserError(f"writing to {uri} needs another package: {error}") from None
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    except Exception as error:  # of whatever class that package has
        raise of_store(uri, error) from None
    return True


_PUTS: dict[str, Callable[[str, bytes], bool]] = {
    "s3": _s3,
    "gs": _fsspec,
    "gcs": _fsspec,
    "abfs": _fsspec,
    "abfss": _fsspec,
    "az": _fsspec,
    "memory": _fsspec,
}
