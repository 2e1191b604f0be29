"""Write a file of a store only if it is as it was seen: conditional requests, by protocol.

S3 takes `If-None-Match: *` and `If-Match: <ETag>`, Google Cloud Storage `ifGenerationMatch`. Other
protocols, and servers of S3 that answer 501, take no conditions.
"""

import errno
from enum import Enum
from typing import Any
from urllib.parse import quote

from retrieval.storage.places import RemotePath

_S3 = ("s3", "s3a")
_GOOGLE = ("gs", "gcs")
_REFUSED_CODES = ("412", "409", "PreconditionFailed", "ConditionalRequestConflict")
_UNSUPPORTED_CODES = ("501", "NotImplemented")


class Answer(Enum):
    """Why a store did not write: the file is not as it was seen, or conditions are unsupported."""

    REFUSED = "refused"
    UNSUPPORTED = "unsupported"


def takes_conditions(place: RemotePath) -> bool:
    """Return whether the store's protocol has conditional writes."""
    return place.url.partition("://")[0] in (*_S3, *_GOOGLE) and "::" not in place.url


def version_of(place: RemotePath) -> str | None:
    """Return the version of the file, which `write_if` takes; None if the file is missing."""
    name = "generation" if _is_google(place) else "ETag"
    try:
        return str(place._do(lambda store, path: store.info(path))[name])
    except (FileNotFoundError, KeyError):  # a folder has no version
        return None


def write_if(place: RemotePath, content: bytes, version: str | None) -> str | Answer:
    """Write the file if it has this version still, or is missing still; return its new version.

    version: from `version_of` or an earlier write. A write whose answer was lost and that was
    repeated counts as done if the content is there. Raises Unreachable.
    """

    def write(store: Any, path: str) -> str | Answer:
        try:
            if _is_google(place):
                return _write_google(store, path, content, version)
            condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
            return str(store.pipe_file(path, content, **condition)["ETag"])
        except Exception as error:
            if answer := _answer(error):
                return answer
            raise

    answer = place._do(write)
    if answer is Answer.REFUSED:
        there = version_of(place)
        if there is not None and _content(place) == content:
            return there
    return answer


def _is_google(place: RemotePath) -> bool:
    return place.url.partition("://")[0] in _GOOGLE


def _write_google(store: Any, path: str, content: bytes, version: str | None) -> str:
    """Write by the JSON API, as gcsfs has no argument for a generation; 0 is a missing file."""
    bucket, key, _ = store.split_path(path)
    written = store.call(
        "POST",
        f"{store._location}/upload/storage/v1/b/{quote(bucket)}/o",
        uploadType="media",
        name=key,
        ifGenerationMatch=version or "0",
        headers={"Content-Type": "application/octet-stream"},
        data=content,
        json_out=True,
    )
    return str(written["generation"])


def _answer(error: Exception) -> Answer | None:
    """Return what the store's error says about the condition; None for other errors."""
    response = getattr(error.__cause__, "response", None) or {}
    codes = {str(getattr(error, "code", "")), str(response.get("Error", {}).get("Code", ""))}
    if isinstance(error, FileExistsError | FileNotFoundError) or codes & {*_REFUSED_CODES}:
        missing_bucket = "bucket does not exist" in str(error)
        return None if missing_bucket else Answer.REFUSED
    if isinstance(error, NotImplementedError) or codes & {*_UNSUPPORTED_CODES}:
        return Answer.UNSUPPORTED
    if getattr(error, "errno", None) == errno.ENOSYS:
        return Answer.UNSUPPORTED
    return None


def _content(place: RemotePath) -> bytes | None:
    try:
        return place.read_bytes()
    except FileNotFoundError:
        return None
