"""Errors of S3: which are temporary and retried, which are not, and a one-line message for each."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from maskmill.pipeline.errors import one_line_cause
from maskmill.pipeline.storage.ranges import BrokenStreamError

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """Timeouts and retry delays, in seconds.

    `total` limits the time for all retries of a request, counted from its first failure. Each retry waits for a random
    time up to a limit that doubles from `first_pause` to `longest_pause`. A request that takes longer than `quiet` is
    logged as a warning. `connect` and `read` are the timeouts of one connection.
    """

    total: float = 180.0
    first_pause: float = 0.2
    longest_pause: float = 20.0
    connect: float = 10.0
    read: float = 60.0
    quiet: float = 5.0


class UnsettledError(Exception):
    """Temporary: responses of the store contradict each other, or another client is writing the object."""


class GaveUpError(Exception):
    """A temporary error that lasted longer than Patience.total."""


TROUBLE = (BotoCoreError, ClientError, ResponseParserError, HTTPError, BrokenStreamError, UnsettledError, GaveUpError)
_TEMPORARY = (
    *(NoConnectionError, HTTPClientError, IncompleteReadError, ResponseParserError, HTTPError),
    *(BrokenStreamError, UnsettledError),
)
_TEMPORARY_CODES = {
    *("RequestTimeout", "OperationAborted", "Throttling", "ThrottlingException", "RequestLimitExceeded"),
    *("IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"),  # damaged on its way
}
_TEMPORARY_STATUS = {429, 500, 502, 503, 504}

_ABSENT = ("NoSuchKey", "404")
_FORBIDDEN = ("AccessDenied", "403")
_REPLACED = ("PreconditionFailed", "412")
_ONE_OBJECT = {*_ABSENT, *_FORBIDDEN, *_REPLACED, "InvalidObjectState", "KeyTooLongError"}
_CREDENTIALS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken")
_EXPIRED = ("ExpiredToken", "TokenRefreshRequired")
_REGION = ("301", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException")
_CAUSES = {
    **dict.fromkeys(_ABSENT, "no such object"),
    **dict.fromkeys(_FORBIDDEN, "access denied (S3 also says so of a missing object if these credentials cannot list)"),
    **dict.fromkeys(_REPLACED, "it was replaced while it was being read"),
    **dict.fromkeys(
        _CREDENTIALS, "the store does not know these credentials: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    ),
    **dict.fromkeys(_EXPIRED, "the credentials have expired: renew them"),
    **dict.fromkeys(_REGION, "the bucket is in another region: set AWS_DEFAULT_REGION"),
    "NoSuchBucket": "no such bucket: create it or correct the address",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: correct it",
}


def persist(step: Callable[[], T], patience: Patience, store: str) -> T:
    """Runs `step`, repeats it after temporary errors, and returns its result.

    Raises GaveUpError after `patience.total` seconds of temporary errors, and any other error at once. `store` names
    the store and its endpoint in log messages.
    """
    trouble = "no answer yet"
    give_up, limit = None, patience.first_pause

    def warn() -> None:
        logger.warning("%s: a request takes longer than %g s: %s", store, patience.quiet, trouble)

    clock = threading.Timer(patience.quiet, warn)
    clock.daemon = True
    clock.start()
    try:
        while True:
            try:
                return step()
            except TROUBLE as error:
                if not _is_temporary(error):
                    raise
                trouble = cause(error)
                now, pause = time.monotonic(), random.uniform(0, limit)
                give_up = give_up or now + patience.total
                if now + pause > give_up:
                    raise GaveUpError(f"no success in {patience.total:g} s: {trouble}") from error
                logger.debug("%s: trying again for up to %.0f s: %s", store, give_up - now, trouble)
            time.sleep(pause)
            limit = min(2 * limit, patience.longest_pause)
    finally:
        clock.cancel()


def cause(error: BaseException) -> str:
    """The cause of an error in one line, without secrets."""
    if isinstance(error, ClientError):
        code = code_of(error)
        said = error.response.get("Error", {}).get("Message", "")
        return f"{_CAUSES.get(code) or ' '.join(said.split())} ({code})"
    if isinstance(error, NoCredentialsError):
        return (
            "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or use an instance role"
        )
    if isinstance(error, CredentialRetrievalError):
        return f"no credentials from {error.kwargs['provider']}"
    return one_line_cause(error)


def concerns_one_object(error: BaseException) -> bool:
    """Whether the store works, but this object is missing or access to it is denied."""
    return isinstance(error, ClientError) and code_of(error) in _ONE_OBJECT


def code_of(error: ClientError) -> str:
    """The error code of S3; the HTTP status if the response has no body."""
    return error.response.get("Error", {}).get("Code", "")


def status_of(error: ClientError) -> int:
    """The HTTP status."""
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _is_temporary(error: BaseException) -> bool:
    if isinstance(error, ClientError):
        return status_of(error) in _TEMPORARY_STATUS or code_of(error) in _TEMPORARY_CODES
    return isinstance(error, _TEMPORARY)
