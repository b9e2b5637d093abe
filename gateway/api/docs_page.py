"""GET /docs: Swagger UI over /openapi.json, from files that `scripts/renew-swagger-ui` keeps."""

from __future__ import annotations

from pathlib import Path

from litestar import Response
from litestar.handlers import HTTPRouteHandler

from gateway.api.errors import read

FOLDER = Path(__file__).with_name("swagger")
SAME_ORIGIN = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}
"""Nothing comes from elsewhere, and no request goes there; icons are in the style sheet."""
FOR_A_DAY = {"cache-control": "max-age=86400", "content-encoding": "gzip"}
PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Image gateway</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/page.js"></script>
</body>
</html>
"""
SCRIPT = """\
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#page",
  deepLinking: true,
  tryItOutEnabled: true,
  validatorUrl: null,
});
"""


def docs_routes() -> list[HTTPRouteHandler]:
    bundle, styles = (
        (FOLDER / f"{name}.gz").read_bytes() for name in ("swagger-ui-bundle.js", "swagger-ui.css")
    )

    @read("/docs", include_in_schema=False)
    async def page() -> Response[str]:
        return Response(PAGE, media_type="text/html", headers=SAME_ORIGIN)

    @read("/docs/page.js", include_in_schema=False)
    async def page_script() -> Response[str]:
        return Response(SCRIPT, media_type="text/javascript")

    @read("/docs/swagger-ui-bundle.js", include_in_schema=False)
    async def swagger_bundle() -> Response[bytes]:
        return Response(bundle, media_type="text/javascript", headers=FOR_A_DAY)

    @read("/docs/swagger-ui.css", include_in_schema=False)
    async def swagger_styles() -> Response[bytes]:
        return Response(styles, media_type="text/css", headers=FOR_A_DAY)

    return [page, page_script, swagger_bundle, swagger_styles]
