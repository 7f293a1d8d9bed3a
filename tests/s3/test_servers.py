"""The servers for tests do what they say: a fault that does not happen would prove nothing."""

from __future__ import annotations

import http.client
import socket
from collections import Counter

import pytest

from testing.s3_servers import NOISY, Answer, Fault, FaultProxy, MotoServer, Request, first, random_faults, refusal

pytestmark = pytest.mark.s3


def send(server: FaultProxy | MotoServer, method: str, path: str, body: bytes = b"", condition: str = "") -> Answer:
    """What a plain client gets within half a second."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=0.5)
    try:
        headers = {"Authorization": "of anybody"} | ({"If-None-Match": condition} if condition else {})
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return Answer(response.status, response.read())
    finally:
        connection.close()


def request(number: int) -> Request:
    return Request(number, "GET", "/", {}, b"")


@pytest.mark.parametrize(
    ("fault", "seen", "takes_effect"),
    [
        (Fault.SLOW_DOWN, 503, False),
        (Fault.INTERNAL_ERROR, 500, False),
        (Fault.CONFLICT, 409, False),
        (Fault.RESET_BEFORE, ConnectionResetError, False),
        (Fault.RESET_AFTER, ConnectionResetError, True),
        (Fault.SILENCE, TimeoutError, True),
    ],
)
def test_fault_is_seen_and_takes_effect_or_not(
    bucket: str, moto: MotoServer, proxy: FaultProxy, fault: Fault, seen: int | type[Exception], takes_effect: bool
):
    proxy.behave(first(fault, lambda _: True))
    if isinstance(seen, int):
        assert send(proxy, "PUT", f"/{bucket}/key", b"x", condition="*").status == seen
    else:
        with pytest.raises(seen):
            send(proxy, "PUT", f"/{bucket}/key", b"x", condition="*")
    assert send(moto, "GET", f"/{bucket}/key").status == (200 if takes_effect else 404)
    assert send(proxy, "PUT", f"/{bucket}/key", b"x").status == 200


def test_request_that_its_client_did_not_finish_never_reaches_the_store(bucket: str, proxy: FaultProxy):
    with socket.create_connection(("127.0.0.1", proxy.server_port)) as client:
        client.sendall(f"PUT /{bucket}/key HTTP/1.1\r\nContent-Length: 10\r\n\r\n01234".encode())
        client.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert send(proxy, "GET", f"/{bucket}/key").status == 404


def test_short_body_breaks_off_in_the_middle(bucket: str, proxy: FaultProxy):
    send(proxy, "PUT", f"/{bucket}/key", b"0123456789")
    proxy.behave(first(Fault.SHORT_BODY, lambda _: True))
    with pytest.raises(http.client.IncompleteRead) as caught:
        send(proxy, "GET", f"/{bucket}/key")
    assert caught.value.partial == b"01234"
    assert send(proxy, "GET", f"/{bucket}/key").content == b"0123456789"


def test_conflict_spares_requests_without_a_condition(bucket: str, proxy: FaultProxy):
    proxy.behave(lambda _: Fault.CONFLICT)
    assert send(proxy, "PUT", f"/{bucket}/key").status == 200


@pytest.mark.parametrize(("ignored", "second"), [((), 412), (("puts",), 200)])
def test_condition_holds_unless_the_proxy_ignores_it(
    bucket: str, proxy: FaultProxy, ignored: tuple[str, ...], second: int
):
    proxy.behave(ignores_conditions=ignored)
    assert send(proxy, "PUT", f"/{bucket}/key", b"1", condition="*").status == 200
    assert send(proxy, "PUT", f"/{bucket}/key", b"2", condition="*").status == second


def test_script_and_after_stand_on_either_side_of_the_store(bucket: str, moto: MotoServer, proxy: FaultProxy):
    found: list[tuple[int, int]] = []

    def look(request: Request) -> None:
        found.append((request.number, send(moto, "GET", f"/{bucket}/key").status))

    proxy.behave(look, after=look)
    send(proxy, "PUT", f"/{bucket}/key", b"x")
    send(proxy, "DELETE", f"/{bucket}/key")
    assert found == [(1, 404), (1, 200), (2, 200), (2, 404)]


def test_answer_of_the_script_is_sent_in_place_of_the_stores(bucket: str, proxy: FaultProxy):
    proxy.behave(first(refusal(418, "Teapot"), lambda _: True, times=2))
    assert [send(proxy, "GET", f"/{bucket}").status for _ in range(3)] == [418, 418, 200]


def test_random_faults_come_at_their_rate_and_are_the_same_for_a_seed():
    script, again, other = (random_faults(0.2, seed, NOISY) for seed in (1, 1, 2))
    told = [script(request(number)) for number in range(2000)]
    assert told == [again(request(number)) for number in range(2000)]
    assert told != [other(request(number)) for number in range(2000)]
    counts = Counter(told)
    assert set(counts) == {None, *NOISY}
    assert 0.16 < 1 - counts[None] / 2000 < 0.24
