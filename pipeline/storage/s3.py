"""The Storage interface on S3 and S3-compatible stores. Design: docs/0003."""

from __future__ import annotations

import functools
import io
import itertools
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

import boto3.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from maskmill.pipeline.errors import ObjectError, StorageError
from maskmill.pipeline.storage.interface import (
    LEFTOVER,
    LEFTOVER_AGE_S,
    PROBE_PREFIX,
    Skip,
    Storage,
    StoredObject,
    unsafe,
)
from maskmill.pipeline.storage.keys import is_key, one_line
from maskmill.pipeline.storage.ranges import RangeStream
from maskmill.pipeline.storage.s3_trouble import (
    TROUBLE,
    Patience,
    UnsettledError,
    cause,
    code_of,
    concerns_one_object,
    persist,
    status_of,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")

_POSITIONS = ("ContinuationToken", "KeyMarker", "UploadIdMarker")
_ENDPOINT = (
    "the endpoint in AWS_ENDPOINT_URL, or the AWS configuration, is not an address of the form https://host:port"
)
BUFFER = 1 << 20  # bytes that a stream reads at once
WRITER = "maskmill-writer"  # metadata key; the value identifies the call of `create` that made the object


def open_s3(uri: str) -> S3Storage:
    """Opens s3://bucket or s3://bucket/prefix. Workers use the endpoint from the environment of this process.

    Raises StorageError if `uri` or the endpoint is invalid.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    if "@" in bucket or ":" in bucket:  # the message does not quote it: it can be a secret
        raise StorageError("s3:// takes the name of a bucket: put an endpoint or credentials in the environment")
    if scheme != "s3" or not re.fullmatch(r"[A-Za-z0-9._-]+", bucket) or (prefix and not is_key(prefix)):
        raise StorageError(f"{one_line(uri)}: not an address of the form s3://bucket or s3://bucket/prefix")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    if endpoint and not _is_endpoint(endpoint):
        raise StorageError(_ENDPOINT)
    return S3Storage(bucket, prefix, endpoint)


def _is_endpoint(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and parts.port != 0 and "@" not in text
    except ValueError:  # invalid port
        return False


@dataclass(frozen=True)
class S3Storage:
    """The objects of a bucket below `prefix`. Keys are relative to the prefix.

    - Listings omit objects with invalid keys (see ReadableStorage), such as `folder/` markers.
    - It holds no credentials: each process looks them up as AWS tools do.
    - Each process has its own client, shared by its threads and not inherited by pickling or forking.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None  # None: AWS, or the endpoint of the machine's AWS configuration
    part_size: int = 64 << 20  # bytes; larger objects are uploaded in parts of this size
    patience: Patience = field(default=Patience(), repr=False)

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def list(self, prefix: str = "", skip: Skip = lambda key: False) -> Iterator[StoredObject]:
        previous, no_paths = "", 0
        for item in self._listed("list_objects_v2", "Contents", self._root + prefix):
            key = item["Key"].removeprefix(self._root)
            if key < previous:  # directory buckets do not sort
                raise StorageError(
                    f"{self.uri}: the store lists {one_line(key)} after {one_line(previous)}: not sorted"
                )
            previous = key
            if is_key(key):
                if not skip(key):
                    yield StoredObject(key, item["Size"], item["LastModified"].timestamp())
            elif any(part.startswith(".") for part in key.split("/")):
                skip(key)
            elif "//" in f"/{key}":
                no_paths += 1
        if no_paths:
            logger.warning(
                "%s: %d objects were left out because their keys have an empty part, as in a//b", self.uri, no_paths
            )

    def read(self, key: str) -> bytes:
        with self.open(key) as stream:
            return stream.read()

    def open(self, key: str) -> BinaryIO:
        name = self._name(key)

        def guard(step: Callable[[], T]) -> T:
            with self._explained("read", key, ObjectError):
                return self._persist(step)

        def fetch(start: int, version: str | None) -> tuple[Any, int, str]:
            pinned = {"Range": f"bytes={start}-", "IfMatch": version} if version else {}
            response = self._client.get_object(Bucket=self.bucket, Key=name, **pinned)
            return response["Body"], response["ContentLength"], response["ETag"]

        return cast(BinaryIO, io.BufferedReader(RangeStream(one_line(f"{self.uri}/{key}"), fetch, guard), BUFFER))

    def exists(self, key: str) -> bool:
        name = self._name(key)
        with self._explained("look for", key):
            return self._persist(lambda: self._writer(name)) is not None

    def create(self, key: str, data: bytes) -> bool:
        name, writer = self._name(key), uuid.uuid4().hex
        step = self._create_whole if len(data) <= self.part_size else self._create_in_parts
        with self._explained("create", key):
            return self._persist(lambda: step(name, data, writer))

    def put(self, key: str, data: bytes) -> None:
        name = self._name(key)
        with self._explained("write", key):
            self._call("put_object", Key=name, Body=data)

    def put_chunks(self, key: str, chunks: Iterable[bytes]) -> None:
        name = self._name(key)
        bodies = _joined(chunks, self.part_size)
        first, second = next(bodies, b""), next(bodies, None)
        if second is None:
            self.put(key, first)
            return
        writer = uuid.uuid4().hex
        with self._explained("write", key):
            begun = self._call("create_multipart_upload", Key=name, Metadata={WRITER: writer})
        upload = {"Key": name, "UploadId": begun["UploadId"]}
        completed = False
        try:
            parts: list[dict[str, Any]] = []
            for number, body in enumerate(itertools.chain([first, second], bodies), 1):
                with self._explained("write", key):
                    part = self._call("upload_part", **upload, PartNumber=number, Body=body)
                parts.append({"ETag": part["ETag"], "PartNumber": number})
            with self._explained("write", key):
                try:
                    self._call("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts})
                except ClientError as error:  # the response to an earlier try, which succeeded, may have been lost
                    if code_of(error) != "NoSuchUpload" or self._writer(name) != writer:
                        raise
            completed = True
        finally:
            if not completed:
                self._abort(**upload)

    def delete(self, key: str) -> None:
        name = self._name(key)
        with self._explained("delete", key):
            self._call("delete_object", Key=name)

    def sweep(self) -> None:
        oldest = datetime.now(UTC) - timedelta(seconds=LEFTOVER_AGE_S)
        try:
            for item in self._listed("list_objects_v2", "Contents", self._root + PROBE_PREFIX):
                key = item["Key"].removeprefix(self._root)
                if LEFTOVER.fullmatch(key) and item["LastModified"] < oldest:
                    self.delete(key)
            for upload in self._listed("list_multipart_uploads", "Uploads", self._root):
                if upload["Initiated"] < oldest:
                    self._abort(upload["Key"], upload["UploadId"])
        except StorageError as error:  # listing or aborting uploads can be denied; leftovers do no harm
            logger.warning("leftovers of killed processes were not removed: %s", error)

    def commit_paths(self) -> Sequence[Storage]:
        return [self, replace(self, part_size=0)]

    # Create. If a request succeeds but its response is lost, the retry finds the object. The metadata of the object
    # then shows whether this call created it.

    def _create_whole(self, name: str, data: bytes, writer: str) -> bool:
        try:
            condition = {"IfNoneMatch": "*", "Metadata": {WRITER: writer}}
            self._client.put_object(Bucket=self.bucket, Key=name, Body=data, **condition)
        except ClientError as error:
            return self._refused(error, name, writer)
        return True

    def _create_in_parts(self, name: str, data: bytes, writer: str) -> bool:
        size = self.part_size or len(data)
        there = self._writer(name) if len(data) > size else None
        if there is not None:  # avoids the upload when another copy of the shard has been committed
            return there == writer
        begun = self._call("create_multipart_upload", Key=name, Metadata={WRITER: writer})
        upload = {"Key": name, "UploadId": begun["UploadId"]}
        completed = False
        try:
            parts = []
            for number, start in enumerate(range(0, len(data), size), 1):
                body = data[start : start + size]
                part = self._call("upload_part", **upload, PartNumber=number, Body=body)
                parts.append({"ETag": part["ETag"], "PartNumber": number})
            self._call("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*")
            completed = True
        except ClientError as error:
            completed = self._refused(error, name, writer)
        finally:
            if not completed:
                self._abort(**upload)
        return completed

    def _refused(self, error: ClientError, name: str, writer: str) -> bool:
        """After a refused create: whether an earlier try of this call created the object. Raises for other errors."""
        code, status = code_of(error), status_of(error)
        if status in (404, 405, 501) and code not in ("NoSuchBucket", "NoSuchUpload"):
            raise StorageError(f"{unsafe(self.uri)} ({cause(error)})")
        if status == 409:
            raise UnsettledError("another client is writing the object") from error
        if status != 412 and code != "NoSuchUpload":  # NoSuchUpload: already completed, or aborted
            raise error
        there = self._writer(name)
        if there is None:
            raise UnsettledError("the store reported first that the object exists, then that it does not") from error
        return there == writer

    def _writer(self, name: str) -> str | None:
        """The id of the `create` call that made the object; "" if another program did; None if there is no object."""
        try:
            return self._client.head_object(Bucket=self.bucket, Key=name)["Metadata"].get(WRITER, "")
        except ClientError as error:
            if status_of(error) == 404:
                return None
            if status_of(error) < 500:  # a HEAD response has no error code; this request fails with one
                self._client.list_objects_v2(Bucket=self.bucket, Prefix=name, MaxKeys=1)
            raise

    def _abort(self, Key: str, UploadId: str) -> None:
        """Deletes the uploaded parts. If that fails, a later `sweep` does it."""
        with suppress(BotoCoreError, ClientError):
            self._client.abort_multipart_upload(Bucket=self.bucket, Key=Key, UploadId=UploadId)

    # Requests.

    @property
    def _client(self) -> Any:
        return _client(self.endpoint, self.patience, os.getpid())

    def _call(self, operation: str, **arguments: Any) -> Any:
        return self._persist(lambda: getattr(self._client, operation)(Bucket=self.bucket, **arguments))

    def _listed(self, operation: str, items: str, prefix: str) -> Iterator[dict[str, Any]]:
        """Lists the items below the prefix, page by page."""
        position: dict[str, str] = {}
        while True:
            with self._explained("list", ""):
                page = self._call(operation, Prefix=prefix, **position)
            yield from page.get(items, ())
            if not page.get("IsTruncated"):
                return
            position = {name: page[f"Next{name}"] for name in _POSITIONS if f"Next{name}" in page}

    def _persist(self, step: Callable[[], T]) -> T:
        return persist(step, self.patience, f"{self.uri} at {self.endpoint}" if self.endpoint else self.uri)

    @contextmanager
    def _explained(self, doing: str, key: str, one_object: type[StorageError] = StorageError) -> Iterator[None]:
        """Converts errors of botocore to StorageError, or to `one_object` if they concern only this object."""
        try:
            yield
        except TROUBLE as error:
            kind = one_object if concerns_one_object(error) else StorageError
            where = one_line(f"{self.uri}/{key}" if key else self.uri)
            # From None: the botocore error, shown in a traceback, can contain the output of a credential helper.
            raise kind(f"{where}: cannot {doing}: {cause(error)}") from None

    @property
    def _root(self) -> str:
        return f"{self.prefix}/" if self.prefix else ""

    def _name(self, key: str) -> str:
        if not is_key(key):
            raise StorageError(f"{self.uri}: not a key of an object: {key!r}")
        return self._root + key


def _joined(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of at least `size` bytes; the last one may be smaller. No piece is empty."""
    pending: list[bytes] = []
    length = 0
    for chunk in chunks:
        pending.append(chunk)
        length += len(chunk)
        if length >= size and length:
            yield b"".join(pending)
            pending.clear()
            length = 0
    if length:
        yield b"".join(pending)


@functools.cache
def _client(endpoint: str | None, patience: Patience, process: int) -> Any:
    """The S3 client of this process; a client cannot be pickled or used after a fork."""
    config = Config(
        connect_timeout=patience.connect,
        read_timeout=patience.read,
        max_pool_connections=64,  # a limit: connections are opened as threads need them
        tcp_keepalive=True,
        retries={"total_max_attempts": 1, "mode": "standard"},  # retries of botocore would hide lost responses
        # Older MinIO, Ceph and R2 do not support the newer checksums. All check the signed SHA-256 of the body.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)
    except BotoCoreError:
        raise
    except ValueError as error:
        raise StorageError(_ENDPOINT) from error
