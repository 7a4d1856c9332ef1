"""The routes of the page, and of the one that shows the routes; their files are read once, when the service starts."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fastapi import FastAPI, HTTPException, Response

SCRIPTS = ("page.js", "arguments.js", "elements.js", "entries.js", "recorder.js", "service.js", "docs.js")
# from the package that has them, where FastAPI loads them from afar
SWAGGER = ("swagger-ui-bundle.js", "swagger-ui.css")
TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
FILES = ("page.css", "docs.css", *SCRIPTS, *SWAGGER)
HEADERS = {
    # scripts, styles and requests of this service alone; media come as blobs that the script has fetched
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src blob:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
# Swagger UI draws its arrows from data: and sets styles in attributes
DOCS_POLICY = HEADERS["Content-Security-Policy"].replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
DOCS_HEADERS = HEADERS | {"Content-Security-Policy": DOCS_POLICY.replace("img-src blob:", "img-src blob: data:")}
OPEN_PATHS = ("/", "/docs", *(f"/page/{name}" for name in FILES))  # they hold nothing secret, and ask for the key


def add_page_routes(api: FastAPI) -> None:
    """Add `/`, `/docs` and their files."""
    folder, swagger = Path(__file__).parent, resources.files("fastapi_offline") / "static"
    html, docs_html = (folder / "index.html").read_bytes(), (folder / "docs.html").read_bytes()
    contents = {name: ((swagger if name in SWAGGER else folder) / name).read_bytes() for name in FILES}

    @api.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(html, media_type="text/html; charset=utf-8", headers=HEADERS)

    @api.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(docs_html, media_type="text/html; charset=utf-8", headers=DOCS_HEADERS)

    @api.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        if name not in FILES:
            raise HTTPException(404)
        return Response(contents[name], media_type=TYPES[Path(name).suffix], headers=HEADERS)
