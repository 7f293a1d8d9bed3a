"""What can go wrong with S3: what passes and is waited for, what does not, and how it is told in one line."""

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
    """How long a store is waited for, all in seconds.

    `total` is what one request and its repetitions may take from the first failure on. Before each repetition comes a
    pause of random length, up to a limit that doubles from `first_pause` to `longest_pause`. After `quiet` seconds
    without success the log says that the store is being tried.
    """

    total: float = 180.0
    first_pause: float = 0.2
    longest_pause: float = 20.0
    connect: float = 10.0
    read: float = 60.0
    quiet: float = 5.0


class UnsettledError(Exception):
    """The store's answers contradict each other, or another writer is just at the object: passes."""


class GaveUpError(Exception):
    """Trouble that did not pass in time."""


TROUBLE = (BotoCoreError, ClientError, ResponseParserError, HTTPError, BrokenStreamError, UnsettledError, GaveUpError)
_PASSING = (
    *(NoConnectionError, HTTPClientError, IncompleteReadError, ResponseParserError, HTTPError),
    *(BrokenStreamError, UnsettledError),
)
_PASSING_CODES = {
    *("RequestTimeout", "OperationAborted", "Throttling", "ThrottlingException", "RequestLimitExceeded"),
    *("IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"),  # damaged on its way
}
_PASSING_STATUS = {429, 500, 502, 503, 504}

_ABSENT = ("NoSuchKey", "404")
_FORBIDDEN = ("AccessDenied", "403")
_REPLACED = ("PreconditionFailed", "412")
_ONE_OBJECT = {*_ABSENT, *_FORBIDDEN, *_REPLACED, "InvalidObjectState", "KeyTooLongError"}
_CREDENTIALS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken")
_EXPIRED = ("ExpiredToken", "TokenRefreshRequired")
_REGION = ("301", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException")
_CAUSES = {
    **dict.fromkeys(_ABSENT, "no such object"),
    **dict.fromkeys(_FORBIDDEN, "these credentials may not (nor tell an absent object without the right to list)"),
    **dict.fromkeys(_REPLACED, "it was replaced meanwhile"),
    **dict.fromkeys(_CREDENTIALS, "the store does not know these credentials: correct AWS_ACCESS_KEY_ID and so on"),
    **dict.fromkeys(_EXPIRED, "the credentials have expired: renew them"),
    **dict.fromkeys(_REGION, "the bucket lies in another region: name it in AWS_DEFAULT_REGION"),
    "NoSuchBucket": "there is no such bucket: create it, or correct the address",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: set it",
}


def persist(step: Callable[[], T], patience: Patience, store: str) -> T:
    """The step's result, repeated while it fails of what passes. GaveUpError after all of the patience.

    Whatever else the step raises comes through at once. `store` names the store and its endpoint in the log.
    """
    trouble = "no answer yet"
    give_up, limit = None, patience.first_pause

    def tell() -> None:
        logger.warning("%s: a request takes longer than %g s: %s", store, patience.quiet, trouble)

    clock = threading.Timer(patience.quiet, tell)
    clock.daemon = True
    clock.start()
    try:
        while True:
            try:
                return step()
            except TROUBLE as error:
                if not _passes(error):
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
    """One line, without secrets."""
    if isinstance(error, ClientError):
        code = code_of(error)
        said = error.response.get("Error", {}).get("Message", "")
        return f"{_CAUSES.get(code) or ' '.join(said.split())} ({code})"
    if isinstance(error, NoCredentialsError):
        return "no credentials: give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine a role"
    if isinstance(error, CredentialRetrievalError):
        return f"credentials cannot be had from {error.kwargs['provider']}"
    return one_line_cause(error)


def concerns_one_object(error: BaseException) -> bool:
    """Whether the store works, and only this object is missing or may not be read."""
    return isinstance(error, ClientError) and code_of(error) in _ONE_OBJECT


def code_of(error: ClientError) -> str:
    """The store's word for the error; the HTTP status where the answer had no room for it."""
    return error.response.get("Error", {}).get("Code", "")


def status_of(error: ClientError) -> int:
    """The HTTP status."""
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _passes(error: BaseException) -> bool:
    if isinstance(error, ClientError):
        return status_of(error) in _PASSING_STATUS or code_of(error) in _PASSING_CODES
    return isinstance(error, _PASSING)
