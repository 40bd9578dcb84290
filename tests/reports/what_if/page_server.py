"""A what-if page that is served, and its callbacks as a browser would post them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orcast.listening import listen
from reports.what_if.page import HOST
from reports.what_if.server import PageServer

TO_HERE = {"Host": f"{HOST}:8050"}


@contextmanager
def served(app: Any, **bounds: Any) -> Iterator[str]:
    """The address at which a WSGI application is served meanwhile."""
    listening = listen(HOST, 0)
    server = PageServer(listening, app, **bounds)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{listening.getsockname()[1]}/"
    finally:
        server.shutdown()
        thread.join()
        listening.close()


class Page:
    """One open page: asks for settings, without a browser."""

    def __init__(self, client: Any, name: str = "page") -> None:
        self.client, self.name = client, name
        known = client.get("/_dash-dependencies", headers=TO_HERE).json
        self.outputs = {
            key: next(each["output"] for each in known if each["output"].startswith(f"..{key}."))
            for key in ("verdict", "opened")
        }
        self.turn = 0

    def ask(self, setting: str, **also: Any) -> Any:
        """The response to a turned knob."""
        self.turn += 1
        asked = {"setting": setting, "pins": [], "theme": "light", "turn": self.turn}
        return self.post(self.body(asked | also))

    def body(self, asked: Any, *, page: Any = None, now: Any = None, before: Any = None) -> Any:
        """What is posted for it; the values may be anything."""
        state = {
            "page.data": page or self.name,
            "now.data": now,
            "before.data": before,
            "hold.value": [],
        }
        return self.call("verdict", {"asked.data": asked}, state)

    def call(self, callback: str, inputs: dict[str, Any], state: dict[str, Any]) -> Any:
        output = self.outputs[callback]
        return {
            "output": output,
            "outputs": [_place(each) for each in output.strip(".").split("...")],
            "inputs": [{**_place(name), "value": value} for name, value in inputs.items()],
            "state": [{**_place(name), "value": value} for name, value in state.items()],
            "changedPropIds": list(inputs),
        }

    def post(self, body: Any) -> Any:
        return self.client.post("/_dash-update-component", json=body, headers=TO_HERE)


def _place(name: str) -> dict[str, str]:
    component, _, prop = name.rpartition(".")
    return {"id": component, "property": prop}
