"""Files of the model hub: from its cache on this machine, or else over the network."""

import re
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import httpx2
import huggingface_hub
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from retrieval.errors import BadInput, RetrError

HUB_TIMEOUT_SECONDS = 8
DEFAULT_REVISION = "main"
REVISION = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", re.ASCII)  # a path below the cache's `refs`
COMMIT = re.compile(r"[0-9a-f]{40}")
DENIED = (401, 403)  # status codes


@dataclass
class Repository:
    """A repository of the model hub at one revision.

    name: `ORGANIZATION/REPOSITORY`. revision: a branch, tag or commit. It is replaced by its commit
    once a file was found, so that all files are of one commit. A branch or tag that is in the cache
    is not looked up again.
    """

    name: str
    revision: str = DEFAULT_REVISION

    def __post_init__(self) -> None:
        if not REVISION.fullmatch(self.revision):
            raise BadInput(
                f"revision '{self.revision}' of {self.name} is not a name; "
                "give a branch, a tag or a commit"
            )

    def __str__(self) -> str:
        return self.name

    def find(self, *names: str, recheck: bool = False) -> Path | None:
        """Return the first of these files that the repository has; None if it has none of them.

        A file in the hub's cache needs no request, nor does one that is known to be missing.
        recheck: whether to ask the hub again for files that a branch or tag did not have. Raises
        BadInput for a repository or revision that is not found or denies access, RetrError if the
        hub cannot be reached.
        """
        known = {name: self._cached(name) for name in names}
        path = next((Path(place) for place in known.values() if isinstance(place, str)), None)
        asked_again = recheck and not COMMIT.fullmatch(self.revision)
        for name in names:
            if path is None and (known[name] is None or asked_again):
                path = self._fetched(name)
        if path is not None:
            self.revision = path.parent.name
        return path

    def _cached(self, name: str) -> object:
        """Return the path in the cache, None if not known, another value if known to be missing."""
        try:
            return try_to_load_from_cache(self.name, name, revision=self.revision)
        except HFValidationError:
            raise self._not_found() from None

    def _fetched(self, name: str) -> Path | None:
        try:
            if not huggingface_hub.constants.is_offline_mode():
                check_reachable(huggingface_hub.constants.ENDPOINT)
            return Path(hf_hub_download(self.name, name, revision=self.revision))
        except RemoteEntryNotFoundError:
            return None
        except RepositoryNotFoundError:
            raise self._not_found() from None
        except RevisionNotFoundError:
            raise BadInput(
                f"{self.name} has no revision '{self.revision}'; give a branch, a tag or a commit"
            ) from None
        except (httpx2.HTTPError, OSError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code in DENIED:
                raise self._not_found() from None
            raise RetrError(
                f"cannot fetch {name} of {self.name} from the model hub ({_reason(error)}); "
                "connect to the network and try again, or name a local folder"
            ) from error

    def _not_found(self) -> BadInput:
        return BadInput(
            f"the model hub has no repository {self.name}, or denies access to it; "
            "check the name, or log in with 'hf auth login'"
        )


@dataclass(frozen=True)
class LocalFolder:
    """A folder with the files of a repository."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def find(self, *names: str) -> Path | None:
        """Return the first of these files that the folder has; None if it has none of them."""
        return next((self.path / name for name in names if (self.path / name).is_file()), None)


def check_reachable(address: str) -> None:
    """Raise OSError if no server answers. The hub's own library would retry for a minute."""
    try:
        urlopen(Request(address, method="HEAD"), timeout=HUB_TIMEOUT_SECONDS).close()
    except (HTTPError, HTTPException):
        pass  # a server answers
    except URLError as error:
        reason = error.reason
        if isinstance(reason, OSError) and not isinstance(
            reason, SSLError
        ):  # the hub's library may trust other certificates
            raise reason from None


def _reason(error: Exception) -> str:
    """Return the server's status, the system's reason, or the type of the first error."""
    if isinstance(error, HfHubHTTPError):
        return f"status {error.response.status_code}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error.__cause__ or error).__name__
