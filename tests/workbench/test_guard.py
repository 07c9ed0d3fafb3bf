"""Who is refused: no token, another page, another name for this machine, paths outside, bodies that are none."""

import json
import socket
from contextlib import suppress

import pytest

from builders_workbench import JSON, PAIR, served, tiny
from crosspatch.workbench import Limits


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tiny(), tmp_path_factory.mktemp("runs"), Limits(tokens=64)) as running:
        yield running


def refused(answer, status, *words):
    code, headers, body = answer
    assert code == status
    told = json.loads(body)["error"]
    assert all(word in told for word in words), told
    assert "Traceback" not in told
    assert headers["x-content-type-options"] == "nosniff"


def test_the_page_is_served_with_a_strict_policy(server):
    """Its own scripts and styles by address, nothing inline, nothing from elsewhere, no frame around it."""
    status, headers, body = server.raw("GET", f"/{server.token}/")
    assert status == 200
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["referrer-policy"] == "no-referrer"
    assert b"<script>" not in body
    assert b" style=" not in body


@pytest.mark.parametrize("path", ["/", "/api/model", "/wrong/api/model", "/wrong/", "//api/model", "/%00/"])
def test_a_request_without_the_token_is_refused(server, path):
    """Whatever is asked."""
    refused(server.raw("GET", path), 403, "token")


def test_another_origin_is_refused(server):
    """A page of another site, even with the token, and even where it only reads."""
    path = f"/{server.token}/api/pair"
    refused(server.raw("POST", path, json.dumps(PAIR), JSON | {"Origin": "http://evil.example"}), 403, "another page")
    refused(server.raw("GET", f"/{server.token}/api/model", headers={"Origin": "null"}), 403, "another page")
    foreign = {"Sec-Fetch-Site": "cross-site"}
    refused(server.raw("GET", f"/{server.token}/", headers=foreign), 403, "another page")
    foreign |= {"Sec-Fetch-Mode": "navigate"}
    refused(server.raw("GET", f"/{server.token}/api/model", headers=foreign), 403, "another page")
    refused(server.raw("POST", f"/{server.token}/", headers=foreign), 403, "another page")
    assert server.raw("GET", f"/{server.token}/", headers=foreign)[0] == 200  # from the file that a browser is given
    own = {"Origin": f"http://127.0.0.1:{server.port}"}
    assert server.raw("POST", path, json.dumps(PAIR), JSON | own)[0] == 200


def test_another_name_for_this_machine_is_refused(server):
    """A name that was made to point here (DNS rebinding) is not this page's."""
    refused(server.raw("GET", f"/{server.token}/", headers={"Host": "evil.example"}), 403, "127.0.0.1")
    assert server.raw("GET", f"/{server.token}/", headers={"Host": "localhost:1"})[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "../app.py",
        "..%2f..%2fapp.py",
        "assets/../../app.py",
        "assets/..%2Findex.html",
        "assets/%2e%2e/guard.py",
        "etc/passwd",
    ],
)
def test_a_path_outside_is_nothing(server, path):
    """Files are known by name; no path reaches the disk."""
    refused(server.raw("GET", f"/{server.token}/{path}"), 404)


def test_a_prompt_of_ten_megabytes_is_refused_unread(server):
    """By what it says of its length; and one that does not say, as soon as it is too long."""
    body = json.dumps(PAIR | {"clean": "a " * 5_000_000})
    path = f"/{server.token}/api/pair"
    with suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was sent
        refused(server.raw("POST", path, body, JSON), 413, "shorter")
    refused(send_in_chunks(server, path, body.encode()), 413, "shorter")
    assert server.ask("GET", "model")[0] == 200


def send_in_chunks(server, path, body):
    """Send a body whose length is not told beforehand, until it is answered."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as line:
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        line.sendall(f"{head}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        with suppress(BrokenPipeError, ConnectionResetError):
            for start in range(0, len(body), 1 << 16):
                part = body[start : start + (1 << 16)]
                line.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            line.sendall(b"0\r\n\r\n")
        while found := line.recv(1 << 16):
            answer += found
    top, rest = answer.split(b"\r\n\r\n", 1)
    lines = top.decode().split("\r\n")
    return int(lines[0].split()[1]), dict(line.split(": ", 1) for line in lines[1:]), rest


@pytest.mark.parametrize("body", ["", "{", "[]", "null", "NaN", '"x"', "\x00", '{"clean": 1, "corrupt": "a"}'])
def test_invalid_json_is_refused(server, body):
    """With what is wrong, and no trace of how the server is made."""
    refused(server.raw("POST", f"/{server.token}/api/pair", body.encode(), JSON), 400)


def test_fields_are_checked(server):
    """Unknown ones, wrong types and other kinds of content."""
    path = f"/{server.token}/api/pair"
    refused(server.raw("POST", path, json.dumps(PAIR | {"out": "/etc"}), JSON), 400, "out")
    refused(server.raw("POST", path, json.dumps(PAIR | {"right": " Mary"}), JSON), 400, "right")
    refused(server.raw("POST", path, json.dumps(PAIR), {"Content-Type": "text/plain"}), 400, "application/json")
    asked = {"pair": PAIR, "sites": "resid.post", "direction": "sideways"}
    refused(server.raw("POST", f"/{server.token}/api/sweeps", json.dumps(asked), JSON), 400, "denoise")


@pytest.mark.parametrize(("method", "path"), [("DELETE", "api/model"), ("POST", ""), ("PUT", "api/pair")])
def test_other_methods_are_refused(server, method, path):
    """An address takes what it is for."""
    refused(server.raw(method, f"/{server.token}/{path}"), 405)


def test_what_the_model_does_not_have_is_told(server):
    """As it would be on the command line: what was given, what there is."""
    for sites, words in (("resid.pots", "resid.post"), ("resid.post[9]", "0..2"), ("attn.head[0, 7]", "0..3")):
        status, found = server.ask("POST", "sweeps", {"pair": PAIR, "sites": sites})
        assert (status, words in found["error"]) == (422, True), found
    status, found = server.ask("POST", "pair", PAIR | {"clean": "a " * 200, "corrupt": "a " * 200})
    assert status == 422
    assert "64 at most" in found["error"]
    assert server.ask("POST", "patch", {"pair": PAIR, "sites": "resid.post[0]@1, " * 30_000})[0] == 422
    for path, more in (("attention", {"layer": 9, "head": 0}), ("lens", {"position": 99})):
        assert server.ask("POST", path, {"pair": PAIR, **more})[0] == 422


def test_what_is_not_held_is_told(server):
    """A sweep, a result, a finding that never was."""
    assert server.ask("GET", "sweeps/none")[0] == 422
    assert server.ask("DELETE", "sweeps/none")[0] == 422
    assert server.ask("POST", "findings", {"result": "none"})[0] == 422
    assert server.ask("GET", "findings/none/report")[0] == 422
    assert server.ask("GET", "findings/all/report")[0] == 400
