"""Read an image by the path of its item: for galleries, and as a query."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

from PIL import Image

from retrieval.contracts import Framing, Images
from retrieval.errors import BadImage, BadSource, UnknownName
from retrieval.images.datasets import cifar, idx
from retrieval.images.pixels.decoding import decode
from retrieval.images.tables.endings import ARROW, PARQUET, TAR
from retrieval.runtime.threads import usable_cores
from retrieval.storage.places import Place, RemotePath


def read_image(path: str, framing: Framing | None = None) -> Image.Image:
    """Return the image, decoded by `decode`. Pass `framing` to allow reduced JPEG decoding.

    path: a file; the row of a container, `FILE#ROW`, where FILE is a Parquet, Arrow, tar or idx
    file, or a batch in a folder or archive of CIFAR-10; `FILE#COLUMN#ROW` with the column of
    images, percent-encoded; `digits#ROW`; or the URL of an image, or a row of Parquet, in a store.
    Raises BadImage, also for a container that is damaged or missing.
    """
    return decode(content_of(path), path, framing)


def content_of(path: str) -> bytes | Place | Images | BadImage:
    """Return the content of the image at the path: encoded bytes, its file, or pixels.

    A file is not opened. path: as `read_image` takes it. Raises BadImage for what is missing.
    """
    if "\0" in path:
        raise BadImage(path, "no such file")
    container, mark, row = path.rpartition("#")
    if "://" in path:
        return _of_url(path, container if row.isdecimal() else "", row)
    if not mark or not (row.isascii() and row.isdigit()) or Path(path).is_file():
        return Path(path)
    try:
        content = _content(container, int(row))
    except FileNotFoundError:
        raise BadImage(path, "no such file") from None
    except OSError as error:
        raise BadImage(path, (error.strerror or str(error)).lower()) from error
    except (BadSource, UnknownName) as error:
        raise BadImage(path, str(error)) from error
    if content is None:
        raise BadImage(path, "no such row")
    return content


def is_gone(path: str) -> bool:
    """Return whether `read_image` finds no file at the path. Stores are not asked."""
    container, mark, row = path.rpartition("#")
    file = container if mark and row.isdecimal() else path
    # A batch in an archive of CIFAR-10, or a column of a table, is below or behind a file.
    places = (path, file, _split(container)[0], str(Path(file).parent))
    if "://" in path or file == "digits" or _exists(path) or _exists(file):
        return False
    return not any(_exists(place) and not _is_folder(place) for place in places[2:])


def _exists(path: str) -> bool:
    # The locale C has no names beyond ASCII, so they are bytes, which pathlib does not take.
    return os.path.exists(path.encode("utf-8", "surrogateescape"))  # noqa: PTH110


def _is_folder(path: str) -> bool:
    return os.path.isdir(path.encode("utf-8", "surrogateescape"))  # noqa: PTH112


def read_each(
    paths: Sequence[str], framing: Framing, shaped: Callable[[Image.Image], Images]
) -> list[Images | BadImage]:
    """Read images in threads; return the result of `shaped` for each, or its error.

    framing: as `read_image` takes it.
    """

    def read(path: str) -> Images | BadImage:
        try:
            return shaped(read_image(path, framing))
        except BadImage as error:
            return error

    with ThreadPoolExecutor(usable_cores()) as threads:
        return [*threads.map(read, paths)]


def _of_url(path: str, container: str, row: str) -> bytes | Place | BadImage:
    file, column = _split(container)
    if not file.lower().endswith(".parquet"):
        return RemotePath(path)
    try:
        content = _table_row(RemotePath(file), int(row), column)
    except FileNotFoundError:
        raise BadImage(path, "no such file") from None
    except (BadSource, UnknownName) as error:
        raise BadImage(path, str(error)) from error
    if content is None:
        raise BadImage(path, "no such row")
    return content


def _split(container: str) -> tuple[str, str | None]:
    """Return the file, and the column of images that its path names."""
    file, mark, column = container.rpartition("#")
    is_named = mark and Path(file).suffix.lower() in PARQUET | ARROW | TAR
    return (file, unquote(column)) if is_named else (container, None)


def _content(container: str, row: int) -> bytes | Place | Images | BadImage | None:
    file = Path(container)
    if file == Path("digits"):
        # scikit-learn takes its time to import.
        from retrieval.images.datasets.digits import all_images

        return all_images()[row] if row < len(all_images()) else None
    if cifar.is_batch(file.name) and file.parent.exists():
        return cifar.read_row(file.parent, file.name, row)
    column = None
    if not file.is_file():
        name, column = _split(container)
        if column is None or not Path(name).is_file():
            raise FileNotFoundError(file)
        file = Path(name)
    if idx.is_images(file):
        return idx.read_row(file, row)
    return _table_row(file, row, column)


def _table_row(file: Place, row: int, column: str | None) -> bytes | Place | BadImage | None:
    """Return the image in the row of a table or archive; None beyond the last row."""
    # Most images are files, and do not wait for these imports.
    from retrieval.images.tables import parquet, webdataset

    if isinstance(file, Path) and file.suffix.lower() in TAR:
        return webdataset.read_row(file, row, column)
    return parquet.read_row(file, row, column)
