"""The HTTP addresses of `retr serve`; `GET /docs` describes them."""

import json
import pathlib
from typing import Annotated, Any, cast

from fastapi import Depends, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from retrieval.errors import BadImage, BadInput, RetrError, UnknownName, WorkerFailed
from retrieval.serving.access import Access, loopback_hosts
from retrieval.serving.collection import Collection
from retrieval.serving.encoding import BadUpload
from retrieval.serving.forms import EmbedForm, SearchForm, WrongMedia
from retrieval.serving.json_errors import JsonErrors
from retrieval.serving.measures import Measured, Measures
from retrieval.serving.queue import MAX_BODY_BYTES, RequestQueue
from retrieval.serving.served import PICTURE_PIXELS, SearchAnswer, Served
from retrieval.storage.names import escaped

PAGE = pathlib.Path(__file__).parent / "page"
MAX_ITEMS = 200

Index = Annotated[str | None, Query(description="The index's name; the first where left out.")]
Id = Annotated[str, Path(alias="id", description="An id, which may have slashes in it.")]
K = Annotated[
    int | None,
    Query(description="Number of neighbors; 10, or all there are, where left out."),
]
Where = Annotated[
    str | None, Query(description='A filter, such as label=cat, label=cat,dog or label="a, b",c.')
]
Effort = Annotated[
    str | None, Query(description="A value of the option that trades recall for time.")
]


class Utf8Json(JSONResponse):
    """A JSON response in UTF-8, even if paths in it are not."""

    def render(self, content: Any) -> bytes:
        """Return the bytes of the document."""
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return escaped(text).encode()


def make_app(
    collection: Collection, bound: str = "127.0.0.1", host: str = "", token: str = ""
) -> FastAPI:
    """Return the service over these indices.

    bound: the address it listens on; on this machine's own it answers to no other name than
    localhost's, and `host`, by which the user called it. token: what callers must send; empty where
    anyone may ask.
    """
    app = FastAPIOffline(
        redoc_url=None,
        default_response_class=Utf8Json,
        static_url="/docs-static",
        title="retr",
        summary="Search images by pictures and words.",
        description='Errors are JSON, `{"error": "…"}`, with the status that fits.',
    )
    measures = Measures()
    for served in collection.served.values():
        measures.rows.labels(served.name).set(len(served.rows))
    _add_errors(app)
    _add_page(app)
    _add_searches(app, collection, measures)
    _add_items(app, collection, measures)
    _add_state(app, collection, measures)
    # The last is the outermost: what it refuses costs the others nothing.
    app.add_middleware(cast(Any, RequestQueue))
    app.add_middleware(cast(Any, RequestBodyLimitMiddleware), max_body_size=MAX_BODY_BYTES)
    app.add_middleware(cast(Any, Access), token=token)
    app.add_middleware(
        cast(Any, TrustedHostMiddleware),
        allowed_hosts=loopback_hosts(bound, host),
        www_redirect=False,
    )
    app.add_middleware(cast(Any, JsonErrors))
    app.add_middleware(cast(Any, Measured), measures=measures)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RetrError)
    def of_retr(request: Request, error: RetrError) -> Utf8Json:
        return _error(_status(error), str(error))

    @app.exception_handler(RequestValidationError)
    def of_arguments(request: Request, error: RequestValidationError) -> Utf8Json:
        first = error.errors()[0]
        field = next(each for each in reversed(first["loc"]) if isinstance(each, str))
        return _error(400, f"{field}: {first['msg']}; see /docs")

    @app.exception_handler(HTTPException)
    def of_http(request: Request, error: HTTPException) -> Utf8Json:
        return _error(error.status_code, f"{error.detail}; see /docs")


def _add_page(app: FastAPI) -> None:
    for file in sorted(PAGE.iterdir()):

        def of_file(file: pathlib.Path = file) -> FileResponse:
            return FileResponse(file, headers={"cache-control": "no-cache"})

        address = "/" if file.name == "index.html" else f"/{file.name}"
        app.add_api_route(address, of_file, include_in_schema=False)


def _add_searches(app: FastAPI, collection: Collection, measures: Measures) -> None:
    @app.post("/api/search")
    def search(form: Annotated[SearchForm, Depends()]) -> dict[str, Any]:
        """Return the images nearest to a query of images, words and rows of the index."""
        served = collection[form.index]
        answer = served.search(form.asked(), form.k, form.where or None, form.effort or None)
        return _observed(measures, served, answer)

    @app.post("/api/embed")
    def embed(form: Annotated[EmbedForm, Depends()]) -> dict[str, Any]:
        """Return the embedding of an image or of a text, by the index's encoder."""
        served = collection[form.index]
        encoder = served.facts.encoder
        vector, notes = served.embedding(form.asked())
        return {
            "embedding": vector.tolist(),
            "encoder": {"name": encoder.name, "fingerprint": encoder.fingerprint},
            **({"notes": notes} if notes else {}),
        }


def _add_items(app: FastAPI, collection: Collection, measures: Measures) -> None:
    @app.get("/api/items")
    def items(
        index: Index = None,
        where: Where = None,
        limit: Annotated[int, Query(ge=1, le=MAX_ITEMS)] = 24,
        seed: Annotated[int, Query(ge=0)] = 0,
    ) -> dict[str, Any]:
        """Some of the collection's images, drawn by seed."""
        return {"items": collection[index].items(where or None, limit, seed)}

    @app.get("/api/items/{id:path}/neighbors")
    def neighbors(
        item: Id, index: Index = None, k: K = None, where: Where = None, effort: Effort = None
    ) -> dict[str, Any]:
        """Return the images nearest to one of the collection's own, itself left out."""
        served = collection[index]
        answer = served.neighbors(item, k, where or None, effort or None)
        return _observed(measures, served, answer)

    @app.get("/api/items/{id:path}/image", response_class=Response)
    def image(
        item: Id,
        index: Index = None,
        size: Annotated[int, Query(ge=PICTURE_PIXELS[0], le=PICTURE_PIXELS[1])] = 256,
    ) -> Response:
        """One of the collection's images, its longer side of at most `size` pixels."""
        served = collection[index]
        content, kind = served.picture(served.row_of(item), size)
        return Response(content, media_type=kind, headers={"cache-control": "max-age=3600"})

    @app.get("/api/items/{id:path}")  # after the longer addresses, as ids may have slashes
    def row(item: Id, index: Index = None) -> dict[str, Any]:
        """Return one of the collection's images: id, label, path and columns."""
        return collection[index].item(item)

    @app.get("/api/map")
    def plane(
        index: Index = None, method: str = "pca", seed: Annotated[int, Query(ge=0, lt=2**32)] = 0
    ) -> dict[str, Any]:
        """Return a map: the position of each image of the collection in the plane."""
        return collection[index].plane(method, seed)


def _add_state(app: FastAPI, collection: Collection, measures: Measures) -> None:
    @app.get("/api/indices")
    def indices() -> dict[str, Any]:
        """Return the indices that are served, with their options, labels, metrics and columns."""
        return {"indices": [served.described for served in collection.served.values()]}

    @app.get("/healthz")
    async def health() -> dict[str, Any]:
        """Tell that the service runs, and whether its encoders are open."""
        return {"status": "ok", "ready": collection.ready.is_set()}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counts and times, for Prometheus."""
        # Not by a thread: these may all be waiting for something.
        return Response(generate_latest(measures.registry), media_type=CONTENT_TYPE_LATEST)


def _observed(measures: Measures, served: Served, answer: SearchAnswer) -> dict[str, Any]:
    measures.search_seconds.labels(served.name).observe(answer.search_ms / 1000)
    measures.encode_seconds.labels(served.name).observe(answer.encode_ms / 1000)
    return answer.to_json()


def _status(error: RetrError) -> int:
    if isinstance(error, WrongMedia):
        return 415
    if isinstance(error, UnknownName):
        return 404
    if isinstance(error, BadImage):
        return 400 if isinstance(error, BadUpload) else 404  # a row's image that is gone
    if isinstance(error, WorkerFailed):
        return 503
    return 400 if isinstance(error, BadInput) else 500


def _error(status: int, error: str) -> Utf8Json:
    return Utf8Json({"error": error}, status)
