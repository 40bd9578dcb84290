"""What the what-if page's application refuses, and with which headers it answers."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests import needs

pytest.importorskip("dash", reason=needs.DASH)

from orcast.ui_cli import what_if
from reports.what_if.server import MOST_BODY_BYTES
from tests.reports.what_if.page_server import TO_HERE, Page

SETTINGS = ["latency.source=roofline", "workload.num_requests=20"]
POST = "/_dash-update-component"


@pytest.fixture(scope="module")
def client() -> Any:
    return what_if("quickstart", SETTINGS)[0].server.test_client()


@pytest.fixture
def page(client: Any, request: pytest.FixtureRequest) -> Page:
    return Page(client, request.node.name)


def test_no_script_but_the_servers_own_may_run(client: Any) -> None:
    response = client.get("/", headers=TO_HERE)
    policy = dict(
        part.strip().partition(" ")[::2]
        for part in response.headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    allowed = policy["script-src"].split()
    assert allowed[0] == "'self'" and all(each.startswith("'sha256-") for each in allowed[1:])
    styles = policy["style-src"].split()
    assert "unsafe-inline" not in response.headers["Content-Security-Policy"]
    assert styles[0] == "'self'" and len(styles) == 2
    nonce = styles[1].removeprefix("'nonce-").removesuffix("'")
    assert f'<style nonce="{nonce}">' in response.text
    again = client.get("/", headers=TO_HERE)
    assert nonce not in again.text + again.headers["Content-Security-Policy"], "known beforehand"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    missing = client.get("/nothing", headers=TO_HERE)
    assert missing.status_code == 404 and "Content-Security-Policy" in missing.headers


@pytest.mark.parametrize(
    "host",
    ["elsewhere.example", "elsewhere.example:8050", "127.0.0.1.elsewhere.example", "0.0.0.0:8050",
     "127.0.0.1:8050@elsewhere.example", "elsewhere.example#127.0.0.1", "[::1]:8050", "127.1",
     "localhost.", "localhost:80:80", "127.0.0.1:", "", "169.254.169.254", "2130706433"],
)  # fmt: skip
def test_another_host_is_refused(client: Any, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize(
    "origin",
    ["null", "http://elsewhere.example", "https://127.0.0.1:8050", "http://127.0.0.1:8051",
     "http://localhost:8050", "http://127.0.0.1", "http://127.0.0.1:8050.elsewhere.example", "",
     "http://127.0.0.1:8050/", "file://"],
)  # fmt: skip
def test_a_page_from_elsewhere_is_refused(client: Any, page: Page, origin: str) -> None:
    body = page.body({"setting": "", "pins": [], "turn": 1})
    for asked in (client.get("/", headers=TO_HERE | {"Origin": origin}),
                  client.post(POST, json=body, headers=TO_HERE | {"Origin": origin})):  # fmt: skip
        assert asked.status_code == 403


def test_this_machines_own_names_are_not(client: Any) -> None:
    for host in ("127.0.0.1:8050", "localhost:8050", "localhost", "127.0.0.1"):
        headers = {"Host": host, "Origin": f"http://{host}"}
        assert client.get("/", headers=headers).status_code == 200


def test_there_is_nothing_else_to_find(client: Any) -> None:
    for path in ("/nothing", "/static/x", "/_reload-hash", "/assets/../page.py",
                 "/assets/%2e%2e/page.py", "/assets/../../../../etc/passwd"):  # fmt: skip
        assert client.get(path, headers=TO_HERE).status_code == 404
    for path in ("/_dash-component-suites/os/path.py", "/_dash-component-suites/dash/../dash.py"):
        assert client.get(path, headers=TO_HERE).status_code in (400, 404)
    assert client.get(POST, headers=TO_HERE).status_code == 405
    assert client.post("/", headers=TO_HERE).status_code == 405
    assert client.delete("/", headers=TO_HERE).status_code == 405


def test_a_body_that_is_too_large_is_refused(client: Any) -> None:
    large = b" " * (MOST_BODY_BYTES + 1)
    for length in (None, "10"):
        headers = TO_HERE | ({} if length is None else {"Content-Length": length})
        response = client.post(POST, data=large, content_type="application/json", headers=headers)
        assert response.status_code in (400, 413)


def test_malformed_callbacks_are_answered_without_a_traceback(
    client: Any, page: Page, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    good = page.body({"setting": "", "pins": [], "theme": "dark", "turn": 1})
    values: tuple[Any, ...] = (
        None,
        True,
        7,
        -1.5,
        "x",
        "\ud800",
        [],
        {},
        [[1]],
        {"id": "asked"},
        10**400,
    )
    bodies = [b"", b"{", b"[]", b"null", b'"x"', b"[" * 100_000, b"\xff", b"NaN"]
    draw = random.Random(1)
    for _ in range(300):
        changed = json.loads(json.dumps(good))
        spot: Any = changed
        while True:  # any spot, at any depth
            keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
            key = draw.choice(keys)
            inner = spot[key]
            if not isinstance(inner, dict | list) or not inner or draw.random() < 0.3:
                break
            spot = inner
        if draw.random() < 0.2:
            del spot[key]
        else:
            spot[key] = draw.choice(values)
        bodies.append(json.dumps(changed).encode())
    codes = {client.post(POST, data=body, headers=TO_HERE, content_type="application/json")
             .status_code for body in bodies}  # fmt: skip
    assert codes <= {200, 204, 400, 413}, codes
    assert 400 in codes
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err + caplog.text


def test_a_page_cannot_make_the_server_remember_a_long_name(page: Page) -> None:
    body = page.body({"setting": "", "pins": [], "turn": 1}, page="x" * 10_000)
    assert page.post(body).status_code == 400


def test_a_fault_of_the_page_is_not_put_on_the_request(
    monkeypatch: pytest.MonkeyPatch, page: Page
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("a fault")

    monkeypatch.setattr("reports.what_if.page.table", fails)
    with pytest.raises(RuntimeError, match="a fault"):
        page.client.application.testing = True
        try:
            page.ask("")
        finally:
            page.client.application.testing = False
            page.client.application.config["PROPAGATE_EXCEPTIONS"] = None


def test_a_name_stays_text_in_the_index() -> None:
    name = "</title></script><script>taken()</script>{%scripts%}<img src=x onerror=taken()>"
    client = what_if("quickstart", [*SETTINGS, f"name={json.dumps(name)}"])[0].server.test_client()
    index = client.get("/", headers=TO_HERE).text
    assert "taken()</script>" not in index and "<img" not in index
    assert index.count("<title>") == index.count("</title>") == 1
    assert "&lt;script&gt;taken()" in index


def test_an_address_opens_its_setting_and_what_was_pinned(page: Page) -> None:
    query = "?engine.max_num_seqs=64&pin=engine.max_num_seqs%3D32&nonsense=%3Cb%3E"
    found = page.post(page.call("opened", {"query.data": query}, {})).json["response"]
    assert found["pins"]["data"] == ["engine.max_num_seqs=32"]
    assert found["opened"]["data"]["engine.max_num_seqs"] == 7
    assert "nonsense is no knob" in json.dumps(found["ignored"])


def test_figures_of_pinned_settings_stand_beside_the_present_ones(page: Page) -> None:
    pins = ["engine.max_num_seqs=2", ""]
    found = page.ask("engine.max_num_seqs=64", pins=pins).json["response"]
    text = json.dumps(found["figures"])
    for said in ("Pin 1", "Pin 2", "Batch limit: 2 sequences", "the scenario's own",
                 "$ per million output tokens", "J per output token, estimated",
                 "limit 200\\u00a0ms"):  # fmt: skip
        assert said in text
    assert found["now"]["data"] == "engine.max_num_seqs=64"


def test_a_model_that_does_not_fit_says_what_would(page: Page) -> None:
    found = page.ask("model=llama-3.1-405b").json["response"]
    text = json.dumps(found["verdict"])
    assert "does not fit on 1 x h200-sxm" in text and "GPUs of that kind would do" in text
    assert "?model=llama-3.1-405b&hardware.tensor_parallel=8" in text
    assert "now" not in found  # what is compared with stays the last one that had a forecast
    assert page.ask("").status_code == 200


def test_memory_stays_flat_over_many_callbacks(page: Page) -> None:
    import tracemalloc

    settings = [f"engine.max_num_seqs={n}" for n in (1, 2, 4, 8, 16, 32, 48, 64)]
    for setting in settings:
        page.ask(setting)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(100):
            assert page.ask(settings[number % len(settings)]).status_code == 200
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 2**20
