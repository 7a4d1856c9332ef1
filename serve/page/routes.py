"""The routes of the page; its files are read once, when the service starts."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, HTTPException, Response

SCRIPTS = ("page.js", "arguments.js", "elements.js", "entries.js", "recorder.js", "service.js")
FILES = {"page.css": "text/css; charset=utf-8"} | dict.fromkeys(SCRIPTS, "text/javascript; charset=utf-8")
HEADERS = {
    # scripts, styles and requests of this service alone; media come as blobs that the script has fetched
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src blob:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
OPEN_PATHS = ("/", *(f"/page/{name}" for name in FILES))  # they hold nothing secret, and ask for the key


def add_page_routes(api: FastAPI) -> None:
    """Add `/` and its files."""
    folder = Path(__file__).parent
    html = (folder / "index.html").read_bytes()
    contents = {name: (folder / name).read_bytes() for name in FILES}

    @api.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(html, media_type="text/html; charset=utf-8", headers=HEADERS)

    @api.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        if name not in FILES:
            raise HTTPException(404)
        return Response(contents[name], media_type=FILES[name], headers=HEADERS)
