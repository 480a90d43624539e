"""The API's description: /openapi.json for machines, /docs for people. Nothing is fetched from elsewhere."""

import base64
import hashlib
from pathlib import Path

from quart import Blueprint, Response, current_app, render_template
from quart_schema import hide

from ..lib.access import open_to_all
from ..lib.openapi import document

blueprint = Blueprint("docs", __name__)

STYLE = (Path(__file__).parent.parent / "templates" / "docs.css").read_text()
STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{STYLE_HASH}'; base-uri 'none'; form-action 'none'"


@blueprint.get("/openapi.json")
@hide
@open_to_all("static")
async def openapi() -> Response:
    """The OpenAPI 3.1 document."""
    return Response(current_app.json.dumps(document(current_app)), content_type="application/json")


@blueprint.get("/docs")
@hide
@open_to_all("static")
async def page() -> Response:
    """The same for people, without scripts."""
    html = await render_template("docs.html", api=document(current_app), style=STYLE)
    return Response(html, headers={"Content-Security-Policy": POLICY}, content_type="text/html; charset=utf-8")
