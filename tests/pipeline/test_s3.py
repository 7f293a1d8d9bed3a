"""What only S3 has: pages, parts, lost responses, connections that break, credentials, stores that are not sound."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import random
import socket
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import boto3.session
import pytest
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import FakeBucket, s3_backends

from maskmill.pipeline.errors import ObjectError, StorageError
from maskmill.pipeline.storage import PROBE_PREFIX, open_storage, prove_create_if_absent
from maskmill.pipeline.storage.ranges import SKIP
from maskmill.pipeline.storage.s3 import S3Storage, open_s3
from maskmill.pipeline.storage.s3_trouble import Patience
from testing.s3_servers import HASTE, NOISY, Answer, Fault, FaultProxy, Request, first, random_faults, refusal

pytestmark = pytest.mark.s3

MIB = 1 << 20
DATA = random.Random(0).randbytes(11 * MIB)


@pytest.fixture
def store(bucket: str, proxy: FaultProxy) -> S3Storage:
    """An empty store behind the proxy. Its parts are as small as S3 allows."""
    return S3Storage(bucket, "a/b", proxy.url, part_size=5 * MIB, patience=HASTE)


@pytest.fixture
def inside(bucket: str) -> FakeBucket:
    """The bucket as moto sees it."""
    return s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[bucket]


def is_complete(request: Request) -> bool:
    return request.method == "POST" and "uploadId=" in request.path


def is_put(request: Request) -> bool:
    return request.method == "PUT"


def is_get(request: Request) -> bool:
    return request.method == "GET"


# Listing.


def seed(bucket: str, keys: list[str]) -> None:
    for key in keys:
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(bucket, key, b"")


@pytest.mark.parametrize("rate", [0, 0.2])
def test_list_returns_every_key_once_when_they_fill_pages(store: S3Storage, proxy: FaultProxy, rate: float):
    expected = [f"{index:05d}.jpg" for index in range(2500)]
    seed(store.bucket, [f"a/b/{key}" for key in expected])
    proxy.behave(random_faults(rate, 3, NOISY))
    assert [item.key for item in store.list()] == expected


def test_list_leaves_out_what_is_no_key_and_says_so_where_nobody_hid_it(
    store: S3Storage, caplog: pytest.LogCaptureFixture
):
    seed(store.bucket, ["a/b/", "a/b/x/", "a/b/.hidden", "a/b/x//y", "a/b/x/../y", "a/b/./x", "a/b/ok", "a/bc", "a/b0"])
    assert [item.key for item in store.list()] == ["ok"]
    assert caplog.messages == [
        f"{store.uri}: 1 objects were left out because their keys have an empty part, as in a//b"
    ]


def test_odd_keys_are_listed_in_order_and_read(store: S3Storage):
    odd = ["a b", "a+b", "a%20b", "a&<b>\"'", "bell\x07", "\u00e9", "e\u0301", "\uffee", "\U0001f388", "a?b#c"]
    for key in odd:
        assert store.create(key, key.encode())
    seed(store.bucket, ["a/b/line\nbreak"])  # which moto's server does not take
    assert [item.key for item in store.list()] == sorted([*odd, "line\nbreak"])
    assert [store.read(key) for key in odd] == [key.encode() for key in odd]
    assert [item.key for item in store.list("a%")] == ["a%20b"]


def test_list_raises_when_the_store_does_not_sort(store: S3Storage, proxy: FaultProxy):
    rest = "<Size>0</Size><LastModified>2026-01-01T00:00:00Z</LastModified>"
    keys = "".join(f"<Contents><Key>a/b/{key}</Key>{rest}</Contents>" for key in "ba")
    proxy.behave(first(Answer(200, f"<ListBucketResult>{keys}</ListBucketResult>".encode()), is_get))
    with pytest.raises(StorageError, match="the store lists a after b"):
        list(store.list())


def test_bucket_without_a_prefix_holds_whole_keys(store: S3Storage):
    whole = replace(store, prefix="")
    store.create("x", b"")
    assert [item.key for item in whole.list()] == ["a/b/x"]
    assert whole.uri == f"s3://{store.bucket}"


# Creating.


def uploads(inside: FakeBucket) -> list[str]:
    return [upload.key_name for upload in inside.multiparts.values()]


def test_create_uploads_in_parts_when_the_object_is_large(store: S3Storage, proxy: FaultProxy, inside: FakeBucket):
    requests: list[Request] = []
    proxy.behave(requests.append)
    assert store.create("big", DATA)
    assert Counter(request.method for request in requests) == {"HEAD": 1, "POST": 2, "PUT": 3}
    assert store.read("big") == DATA
    assert uploads(inside) == []


def test_create_uploads_nothing_when_the_large_object_is_there(store: S3Storage, proxy: FaultProxy):
    store.create("big", b"small")
    requests: list[Request] = []
    proxy.behave(requests.append)
    assert not store.create("big", DATA)
    assert [request.method for request in requests] == ["HEAD"]


def test_create_returns_false_when_another_completes_first(store: S3Storage, proxy: FaultProxy, inside: FakeBucket):
    def overtake(request: Request) -> None:
        if is_complete(request):
            proxy.behave()
            assert store.create("big", b"overtaken")

    proxy.behave(overtake)
    assert not store.create("big", DATA)
    assert store.read("big") == b"overtaken"
    assert uploads(inside) == []


def test_create_uploads_again_when_completion_conflicts(store: S3Storage, proxy: FaultProxy, inside: FakeBucket):
    proxy.behave(first(Fault.CONFLICT, is_complete))
    assert store.create("big", DATA)
    assert store.read("big") == DATA
    assert uploads(inside) == []


def test_create_aborts_the_upload_when_a_part_is_refused(store: S3Storage, proxy: FaultProxy, inside: FakeBucket):
    proxy.behave(first(refusal(400, "InvalidRequest", "Not what\nyou sent."), is_put))
    with pytest.raises(StorageError, match=r"a/b/big: cannot create: Not what you sent. \(InvalidRequest\)"):
        store.create("big", DATA)
    assert uploads(inside) == []
    assert not store.exists("big")


@pytest.mark.parametrize("part_size", [0, 5 * MIB])
@pytest.mark.parametrize("fault", [Fault.RESET_AFTER, Fault.SILENCE])
def test_create_returns_true_when_the_response_to_its_success_is_lost(
    store: S3Storage, proxy: FaultProxy, fault: Fault, part_size: int
):
    store = replace(store, part_size=part_size, patience=replace(HASTE, read=0.2))
    lost = (lambda request: request.conditional) if part_size else is_complete
    proxy.behave(first(fault, lost))
    assert store.create("key", b"mine")
    assert not store.create("key", b"mine")
    assert store.read("key") == b"mine"


def test_create_returns_true_when_the_completed_upload_is_forgotten(store: S3Storage, proxy: FaultProxy):
    lose, forget = first(Fault.RESET_AFTER, is_complete), first(refusal(404, "NoSuchUpload"), is_complete)
    proxy.behave(lambda request: lose(request) or forget(request))
    assert store.create("big", DATA)


def test_create_starts_again_when_the_upload_was_aborted(store: S3Storage, proxy: FaultProxy):
    proxy.behave(first(refusal(404, "NoSuchUpload"), is_complete))
    assert store.create("big", DATA)
    assert store.read("big") == DATA


def test_put_chunks_uploads_parts_of_bounded_size(store: S3Storage, proxy: FaultProxy, inside: FakeBucket):
    requests: list[Request] = []
    proxy.behave(requests.append)
    store.put_chunks("big", (DATA[start : start + MIB] for start in range(0, len(DATA), MIB)))
    assert Counter(request.method for request in requests) == {"POST": 2, "PUT": 3}
    assert store.read("big") == DATA
    assert uploads(inside) == []


def test_put_chunks_aborts_the_upload_when_a_part_is_refused(store: S3Storage, proxy: FaultProxy, inside: FakeBucket):
    proxy.behave(first(refusal(400, "InvalidRequest", "Not what\nyou sent."), is_put))
    with pytest.raises(StorageError, match=r"a/b/big: cannot write: Not what you sent. \(InvalidRequest\)"):
        store.put_chunks("big", [DATA, DATA])
    assert uploads(inside) == []
    assert not store.exists("big")


def test_put_chunks_succeeds_when_the_response_to_its_success_is_lost(store: S3Storage, proxy: FaultProxy):
    lose, forget = first(Fault.RESET_AFTER, is_complete), first(refusal(404, "NoSuchUpload"), is_complete)
    proxy.behave(lambda request: lose(request) or forget(request))
    store.put_chunks("big", [DATA, DATA])
    assert store.read("big") == DATA + DATA


def test_create_returns_false_when_the_same_bytes_are_another_programs(store: S3Storage):
    store.put("key", b"same")
    assert not store.create("key", b"same")


@pytest.mark.parametrize("part_size", [0, 5 * MIB])
def test_exactly_one_of_many_threads_creates_each_key(store: S3Storage, proxy: FaultProxy, part_size: int):
    store = replace(store, part_size=part_size, patience=replace(HASTE, read=0.3))
    proxy.behave(random_faults(0.2, part_size, (*NOISY, Fault.RESET_AFTER, Fault.RESET_AFTER)))
    keys, names = [f"part-{number}" for number in range(8)], [f"thread {number}".encode() for number in range(6)]
    with ThreadPoolExecutor(len(names)) as threads:
        won = [list(threads.map(lambda name, key=key: store.create(key, name), names)) for key in keys]
    assert [sum(outcome) for outcome in won] == [1] * len(keys)
    assert [store.read(key) for key in keys] == [names[outcome.index(True)] for outcome in won]


def test_every_body_is_signed_by_its_hash(store: S3Storage, proxy: FaultProxy):
    requests: list[Request] = []
    proxy.behave(requests.append)
    store.put("small", b"small")
    store.create("big", DATA)
    for request in requests:
        assert request.headers["X-Amz-Content-SHA256"] == hashlib.sha256(request.body).hexdigest()


# Streams.


def test_sequential_reading_is_one_request(store: S3Storage, proxy: FaultProxy):
    store.put("big", DATA)
    requests: list[Request] = []
    proxy.behave(requests.append)
    with store.open("big") as stream:
        assert b"".join(iter(lambda: stream.read(100_000), b"")) == DATA
        stream.seek(1000)
        stream.seek(0, io.SEEK_END)
        assert stream.read() == b""
    assert len(requests) == 1


def test_stream_goes_on_where_it_broke(store: S3Storage, proxy: FaultProxy):
    store.put("big", DATA)
    requests: list[Request] = []
    cut = first(Fault.SHORT_BODY, is_get, times=3)
    proxy.behave(lambda request: requests.append(request) or cut(request))
    assert store.read("big") == DATA
    halves = [f"bytes={len(DATA) - len(DATA) // 2**broken}-" for broken in (1, 2, 3)]
    assert [request.headers.get("Range") for request in requests] == [None, *halves]


@pytest.mark.parametrize("rate", [0, 0.2])
def test_stream_reads_as_a_file_when_it_is_sought(store: S3Storage, proxy: FaultProxy, rate: float):
    store.put("big", DATA)
    proxy.behave(random_faults(rate, 5, NOISY))
    generator, expected = random.Random(1), io.BytesIO(DATA)
    with store.open("big") as stream:
        assert stream.seekable()
        assert stream.readable()
        for _ in range(60):
            whence = generator.choice([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END])
            offset = generator.randrange(len(DATA) + 1000) - expected.tell() if whence == io.SEEK_CUR else 0
            offset = offset or (generator.randrange(len(DATA)) if whence == io.SEEK_SET else -generator.randrange(5000))
            if whence == io.SEEK_CUR and expected.tell() + offset < 0:
                continue
            assert stream.seek(offset, whence) == expected.seek(offset, whence)
            amount = generator.choice([0, 1, 1000, 2 * MIB])
            assert stream.read(amount) == expected.read(amount)
    with pytest.raises(ValueError, match="closed"):
        stream.read(1)


def test_empty_object_is_an_empty_stream(store: S3Storage):
    store.put("empty", b"")
    with store.open("empty") as stream:
        assert stream.read() == b""
        assert stream.read(1) == b""


@pytest.mark.parametrize("heeding", [True, False])
def test_reading_raises_when_the_object_is_replaced_under_the_reader(
    store: S3Storage, proxy: FaultProxy, heeding: bool
):
    store.put("big", DATA)
    proxy.behave(first(Fault.SHORT_BODY, is_get), ignores_conditions=() if heeding else ("gets",))
    with store.open("big") as stream:
        assert stream.read(1000) == DATA[:1000]
        store.put("big", DATA[::-1])
        with pytest.raises(ObjectError, match="replaced"):
            stream.read()


def test_reading_raises_when_the_object_is_deleted_under_the_reader(store: S3Storage):
    store.put("big", DATA)
    with store.open("big") as stream:
        store.delete("big")
        stream.seek(SKIP + 2 * MIB)
        with pytest.raises(ObjectError, match="no such object"):
            stream.read(1)


def test_reading_raises_when_the_store_knows_no_ranges(store: S3Storage, proxy: FaultProxy):
    store.put("big", DATA)

    def without_range(request: Request) -> Fault | Answer | None:
        if "Range" not in request.headers:
            return Fault.SHORT_BODY
        return Answer(200, DATA, [("ETag", request.headers["If-Match"])])

    proxy.behave(without_range)
    with pytest.raises(StorageError, match="does not return the requested byte range"):
        store.read("big")


# Trouble, and how it is told.


def one_line(caught: pytest.ExceptionInfo[Exception]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_one_missing_or_forbidden_object_is_told_from_a_store_in_trouble(store: S3Storage, proxy: FaultProxy):
    with pytest.raises(ObjectError, match="/a/b/absent: cannot read: no such object"):
        store.read("absent")
    proxy.behave(first(refusal(403, "AccessDenied"), is_get))
    with pytest.raises(ObjectError, match="access denied"):
        store.open("forbidden")
    hasty = replace(store, patience=replace(HASTE, total=0.1))
    for told in (refusal(503, "SlowDown"), Fault.RESET_BEFORE, refusal(403, "InvalidAccessKeyId"), refusal(501, "X")):
        proxy.behave(lambda _, told=told: told)
        with pytest.raises(StorageError, match="/a/b/any: cannot read") as caught:
            hasty.read("any")
        assert not isinstance(caught.value, ObjectError)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (refusal(403, "InvalidAccessKeyId"), "does not know these credentials"),
        (refusal(403, "SignatureDoesNotMatch"), "does not know these credentials"),
        (refusal(400, "ExpiredToken"), "the credentials have expired"),
        (refusal(403, "RequestTimeTooSkewed"), "clock"),
        (refusal(400, "IllegalLocationConstraintException"), "AWS_DEFAULT_REGION"),
        (refusal(403, "AccessDenied"), "access denied"),
    ],
)
def test_every_call_says_why_the_store_refuses(store: S3Storage, proxy: FaultProxy, told: Answer, said: str):
    proxy.behave(lambda _: told)
    calls: list[Callable[[], object]] = [
        lambda: store.exists("x"),
        lambda: store.read("x"),
        lambda: store.create("x", b""),
        lambda: store.create("x", DATA),
        lambda: store.put("x", b""),
        lambda: store.delete("x"),
        lambda: list(store.list()),
    ]
    for call in calls:
        with pytest.raises(StorageError, match=said) as caught:
            call()
        assert store.uri in one_line(caught)


def test_calls_say_so_when_there_is_no_such_bucket(store: S3Storage):
    absent = replace(store, bucket="no-such-bucket")
    calls: list[Callable[[], object]] = [
        lambda: absent.read("x"),
        lambda: absent.create("x", b""),
        lambda: absent.create("x", DATA),
        lambda: list(absent.list()),
    ]
    for call in calls:
        with pytest.raises(StorageError, match="no such bucket: create it") as caught:
            call()
        assert not isinstance(caught.value, ObjectError)


def test_calls_give_up_in_time_when_nobody_answers(
    store: S3Storage, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
):
    patience = Patience(total=0.3, first_pause=0.01, longest_pause=0.02, connect=0.1, read=0.1, quiet=0.01)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    deaf = replace(store, endpoint=f"http://127.0.0.1:{port}", patience=patience)
    with pytest.raises(StorageError, match=r"cannot create: no success in 0.3 s: Could not connect") as caught:
        deaf.create("x", b"")
    assert one_line(caught)
    assert f"{deaf.uri} at {deaf.endpoint}: a request takes longer than 0.01 s: " in caplog.text
    proxy.behave(lambda _: Fault.SILENCE)
    with pytest.raises(StorageError, match=r"cannot look for: no success in 0.3 s: Read timeout"):
        replace(store, patience=patience).exists("x")


def test_user_is_told_where_it_is_tried_while_the_store_accepts_and_never_answers(s3_environment: None):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and never answers
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        code = "import sys; from maskmill.jobs.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "verify", "s3://bucket/out"]
        environment = {**os.environ, "AWS_ENDPOINT_URL_S3": endpoint}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        try:
            said = process.stderr.readline()
            told = f"s3://bucket/out at {endpoint}: a request takes longer than 5 s: no answer yet"
            assert said == f"maskmill: warning: {told}\n"
            assert process.poll() is None  # the request has not failed yet
        finally:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    "uri",
    ["s3:/x", "s3:x", "s3://", "s3:///x", "s3://a b/c", "s3://b//x", "s3://b/../x", "s3://b/.x", "s3://b\n/x"],
)
def test_address_that_is_none_is_refused(uri: str):
    with pytest.raises(StorageError, match=r"not an address of the form s3://bucket") as caught:
        open_storage(uri)
    assert one_line(caught)


@pytest.mark.parametrize(("uri", "again"), [("s3://b", "s3://b"), ("s3://b/", "s3://b"), ("s3://b/x/y/", "s3://b/x/y")])
def test_address_comes_back_as_it_was_given(uri: str, again: str):
    assert open_storage(uri).uri == again


@pytest.mark.parametrize(
    "endpoint",
    ["localhost:9000", "ftp://host", "http://", "http://a_b", "http://host:x", "http://host:99999", "http://[x"],
)
def test_endpoint_that_is_none_is_refused(s3_environment: None, endpoint: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StorageError, match="not an address of the form https://host:port"):
        open_storage("s3://bucket").exists("x")


def test_endpoint_of_the_profile_is_used_or_refused(s3_environment: None):
    Path(os.environ["AWS_CONFIG_FILE"]).write_text("[default]\nendpoint_url = http://a_b\n")
    with pytest.raises(StorageError, match="not an address of the form https://host:port"):
        S3Storage("bucket", patience=replace(HASTE, total=1.5)).exists("x")


# Credentials.

SECRET = "tH1s-must-st4y-s3cret"


def test_secrets_in_addresses_are_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"https://user:/{SECRET}@host")
    for uri in (f"s3://key:{SECRET}@bucket/x", f"s3://key:/{SECRET}@bucket/x", "s3://bucket/x"):
        with pytest.raises(StorageError) as caught:
            open_storage(uri)
        assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("environment", "configuration", "said"),
    [
        ({}, "", "no credentials: set AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": SECRET}, "", "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_PROFILE": "absent"}, "", "absent"),
        (
            {},
            f"credential_process = sh -c 'echo {SECRET} >&2; exit 1'",
            "no credentials from custom-process",
        ),
        ({"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": SECRET}, "", "does not know"),
    ],
)
def test_bad_credentials_are_one_line_and_stay_secret(
    store: S3Storage,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    environment: dict[str, str],
    configuration: str,
    said: str,
):
    caplog.set_level(logging.DEBUG, "pipeline")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    Path(os.environ["AWS_CONFIG_FILE"]).write_text(f"[default]\n{configuration}\n")
    # A patience of its own is a client of its own, which reads this environment.
    store = replace(store, patience=replace(HASTE, total=10 + random.random()))
    proxy.behave(lambda request: Fault.SLOW_DOWN if request.number == 1 else refusal(403, "InvalidAccessKeyId", SECRET))
    with pytest.raises(StorageError, match=said) as caught:
        store.exists("x")
    seen = [one_line(caught), repr(caught.value), *traceback.format_exception(caught.value), caplog.text, repr(store)]
    assert SECRET not in "".join(seen)
    assert SECRET.encode() not in pickle.dumps(store) + pickle.dumps(caught.value)


def test_endpoint_travels_and_credentials_are_found_where_it_arrives(
    store: S3Storage, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    opened = open_s3(store.uri)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    requests: list[Request] = []
    proxy.behave(requests.append)
    pickle.loads(pickle.dumps(opened)).put("x", b"")
    assert "tester" in requests[0].headers["Authorization"]


# Stores that are not sound.


@pytest.mark.parametrize("ignored", [("puts",), ("completes",), ("puts", "completes")])
def test_proof_fails_when_the_store_ignores_a_condition(store: S3Storage, proxy: FaultProxy, ignored: tuple[str, ...]):
    proxy.behave(ignores_conditions=ignored)
    with pytest.raises(StorageError, match="does not honour create-if-absent"):
        prove_create_if_absent(store)
    assert list(store.list()) == []


@pytest.mark.parametrize(
    "told", [refusal(501, "NotImplemented"), refusal(404, "NoSuchKey"), refusal(405, "NotAllowed")]
)
def test_proof_fails_when_the_store_refuses_conditions(store: S3Storage, proxy: FaultProxy, told: Answer):
    proxy.behave(first(told, lambda request: request.conditional))
    with pytest.raises(StorageError, match="does not honour create-if-absent"):
        prove_create_if_absent(store)


# Leftovers.


def test_sweep_removes_only_what_is_old_and_ours(store: S3Storage, proxy: FaultProxy, inside: FakeBucket):
    long_ago = datetime.now(UTC) - timedelta(hours=25)
    probes = [PROBE_PREFIX + digit * 32 for digit in "abc"]
    for key in (*probes, "masks/part"):
        store.put(key, b"")
    for key in (*probes[:2], "masks/part"):
        cast(Any, inside.keys[f"a/b/{key}"]).last_modified = long_ago.replace(tzinfo=None)
    client = boto3.session.Session().client("s3", endpoint_url=proxy.url)
    begun = {
        name: client.create_multipart_upload(Bucket=store.bucket, Key=name)["UploadId"]
        for name in ("a/b/masks/old", "a/b/masks/new", "a/other")
    }
    listed = "".join(
        f"<Upload><Key>{name}</Key><UploadId>{begun[name]}</UploadId><Initiated>{when.isoformat()}</Initiated></Upload>"
        for name, when in {"a/b/masks/old": long_ago, "a/b/masks/new": datetime.now(UTC)}.items()
    )
    listing = f"<ListMultipartUploadsResult>{listed}</ListMultipartUploadsResult>".encode()
    requests: list[Request] = []
    answer = first(Answer(200, listing), lambda request: "uploads" in request.path)
    proxy.behave(lambda request: requests.append(request) or answer(request))
    store.sweep()
    assert "prefix=a%2Fb%2F" in next(request.path for request in requests if "uploads" in request.path)
    assert [item.key for item in store.list()] == [probes[2], "masks/part"]
    assert sorted(uploads(inside)) == ["a/b/masks/new", "a/other"]


def test_sweep_goes_on_when_it_may_not(store: S3Storage, proxy: FaultProxy, caplog: pytest.LogCaptureFixture):
    proxy.behave(first(refusal(403, "AccessDenied"), lambda request: "uploads" in request.path))
    store.sweep()
    assert "leftovers of killed processes were not removed" in caplog.text


# Without boto3.


def run_python(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_local_runs_do_not_import_boto3():
    program = "import sys, jobs.cli, pipeline.generator, pipeline.storage; pipeline.storage.open_storage('.');"
    assert run_python(f"{program} print('boto3' in sys.modules or 'botocore' in sys.modules)") == "False\n"


def test_s3_address_asks_for_boto3_when_it_is_missing():
    program = """
import sys
sys.modules["boto3"] = None
from maskmill.pipeline.storage import open_storage
try:
    open_storage("s3://bucket")
except Exception as error:
    print(type(error).__name__, error)
"""
    assert run_python(program).startswith("StorageError an s3:// address needs boto3")
