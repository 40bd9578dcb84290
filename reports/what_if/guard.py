"""What the what-if page's server refuses, and what it tells browsers to refuse.

A page from elsewhere can send requests here, may have its name point to this machine, and may show
this page in a frame: hence Host, Origin and the headers. A local program can send anything.
"""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from reports.page.own_names import LOOPBACK
from reports.what_if.server import MOST_BODY_BYTES

if TYPE_CHECKING:
    from dash import Dash

NONCE = "the-nonce-of-this-answer"  # in the index, where its style sheets' nonce comes to stand
_PATHS = re.compile(
    r"/(_dash-(layout|dependencies|update-component|component-suites/.+)|assets/.+)?"
)


def guard(app: "Dash") -> None:
    """Check every request to `app`, whose callbacks are all declared, and head every response."""
    from flask import abort, g, request
    from werkzeug.exceptions import HTTPException

    server = app.server
    server.config["MAX_CONTENT_LENGTH"] = MOST_BODY_BYTES
    hashes = app.csp_hashes()
    headers = {
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }

    def check() -> None:
        if not LOOPBACK.addressed(request.headers.get("Host", ""), request.headers.get("Origin")):
            abort(403)
        if not _PATHS.fullmatch(request.path):
            abort(404)
        if (request.method == "POST") != (request.path == "/_dash-update-component"):
            abort(405)
        if (request.content_length or 0) > MOST_BODY_BYTES:
            abort(413)

    def head(response: Any) -> Any:
        nonce = secrets.token_urlsafe(16)
        if response.mimetype == "text/html" and not response.direct_passthrough:
            response.set_data(response.get_data().replace(NONCE.encode(), nonce.encode()))
        policy = _policy(hashes, nonce)
        response.headers.update(headers | {"Content-Security-Policy": policy})
        return response

    def failed(error: Exception) -> Any:
        """What fails outside the page's own code fails for what was sent."""
        if isinstance(error, HTTPException):
            return error
        if not g.get("in_own_code", False):
            return "malformed request", 400
        raise error

    server.before_request_funcs.setdefault(None, []).insert(0, check)  # before Dash's own
    server.after_request(head)
    server.register_error_handler(Exception, failed)


@contextmanager
def own_code() -> Iterator[None]:
    """An exception that leaves this is a fault of the page, not of the request."""
    from flask import g

    g.in_own_code = True
    yield
    g.in_own_code = False


def _policy(script_hashes: Any, nonce: str) -> str:
    return "; ".join(
        (
            "default-src 'none'",
            "connect-src 'self'",
            " ".join(("script-src 'self'", *script_hashes)),
            f"style-src 'self' 'nonce-{nonce}'",
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
