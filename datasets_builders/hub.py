"""The Hugging Face Hub as this project uses it: patient where trouble passes, clear where it does not."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from datasets_builders.errors import UserError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds to wait before each new attempt. The client library repeats uploads and metadata requests itself, but not
# these: asking for and creating a repository, commits, and downloads that fail after they began.
WAITS: tuple[float, ...] = (1, 2, 4, 8)
LONGEST_WAIT = 300.0
# What the client library raises when a request fails: errors of its own and of its HTTP library, of uploads
# (RuntimeError), and of answers that make no sense (ValueError).
ERRORS = (httpx2.HTTPError, OSError, RuntimeError, ValueError)
PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
CONFLICT_STATUS = frozenset({409, 412})
COMMIT_HASH = re.compile(r"[0-9a-f]{40}")
LOG_IN = "hf auth login   (or set HF_TOKEN to a token from https://huggingface.co/settings/tokens)"


def check_repo(repo: str) -> str:
    """Returns the name of a repository if it is one.

    Raises:
        UserError: It is not `ORG/NAME`.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo!r} cannot be the name of a repository on the Hub: {error}") from error
    if "/" not in repo:
        raise UserError(f"{repo!r} does not say whose repository it is: write ORG/NAME.")
    return repo


def client() -> HfApi:
    """Returns the Hub's client, as configured by the environment (`HF_ENDPOINT`, `HF_TOKEN`, ...)."""
    return HfApi(endpoint=constants.ENDPOINT, library_name="agssp-bench")


def require_login(command: str) -> None:
    """Checks that there is a token.

    Args:
        command: What to type after logging in.

    Raises:
        UserError: There is none.
    """
    if get_token() is None:
        raise UserError(f"You are not logged in to the Hub.\n  First: {LOG_IN}\n  then: {command}")


def patiently(call: Callable[[], T], what: str) -> T:
    """Calls, and calls again after a growing wait while the error is one that passes by itself.

    These are 408, 425, 429 (after `Retry-After`, where given), 5xx, and broken connections.

    Args:
        call: The request; it must not matter if it is made twice.
        what: What is being done, for the log.

    Raises:
        Exception: The error of the last attempt, or one that does not pass.
    """
    for wait in WAITS:
        try:
            return call()
        except ERRORS as error:
            if not passes(error):
                raise
            seconds = max(wait, asked_wait(error))
            logger.warning("%s: %s. Trying again in %g s.", what, brief(error), seconds)
            time.sleep(seconds)
    return call()


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def status_of(error: BaseException) -> int | None:
    """Returns the HTTP status that an error of the client library comes from, if it comes from one."""
    for found in _causes(error):
        if isinstance(found, HfHubHTTPError) and found.response is not None:
            return found.response.status_code
    return None


def passes(error: BaseException) -> bool:
    """Tells whether the same request may well succeed a little later."""
    if isinstance(error, LocalEntryNotFoundError):
        # The client library has been patient already.
        return False
    status = status_of(error)
    if status is not None:
        return status in PASSING_STATUS
    # What arrived is shorter than announced: the client library says so with a plain OSError.
    cut_short = isinstance(error, OSError) and "Consistency check failed" in str(error)
    return cut_short or _is_broken_connection(error)


def _is_broken_connection(error: BaseException) -> bool:
    return any(isinstance(found, httpx2.TransportError) for found in _causes(error))


def asked_wait(error: BaseException) -> float:
    """Returns the seconds that the Hub asks to wait, else 0."""
    for found in _causes(error):
        if isinstance(found, HfHubHTTPError) and found.response is not None:
            asked = found.response.headers.get("Retry-After", "")
            return min(float(asked), LONGEST_WAIT) if asked.isdecimal() else 0.0
    return 0.0


def brief(error: BaseException) -> str:
    """Returns one line that says what went wrong."""
    status = status_of(error)
    if status is not None:
        return {429: "the Hub asks to slow down (429)"}.get(status, f"the Hub answered {status}")
    root = list(_causes(error))[-1]
    return f"{type(root).__name__}: {root}".splitlines()[0].rstrip(".: ")


def explain(error: BaseException, repo: str, doing: str, instead: str) -> UserError:
    """Turns an error of the client library into one that says what to do.

    Args:
        error: What was raised.
        repo: The repository.
        doing: What was being done, such as `"download lab/steel@v1"`.
        instead: Lines that say how to go on.
    """
    status = status_of(error)
    where = constants.ENDPOINT
    if any(isinstance(found, OfflineModeIsEnabled) for found in _causes(error)):
        reason = "the client is switched offline (HF_HUB_OFFLINE=1; unset it to use the network)"
    elif isinstance(error, GatedRepoError):
        reason = f"its owner gives access on request: ask at {where}/datasets/{repo}, and log in: {LOG_IN}"
    elif isinstance(error, RevisionNotFoundError):
        reason = "the repository has no such revision"
    elif isinstance(error, RepositoryNotFoundError):
        reason = (
            f"there is no dataset repository {repo}, or it is private and your token does not open it.\n"
            f"  If it is private, log in: {LOG_IN}"
        )
    elif isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        reason = "a file that belongs to it is not there"
    elif status == 401:
        reason = f"the Hub does not accept your token. Log in again: {LOG_IN}"
    elif status == 403:
        reason = f"your token may not do that. Take one with write access to {repo.split('/')[0]}: {LOG_IN}"
    elif status is not None:
        message = (
            str(error).strip().splitlines()[-1] if status not in PASSING_STATUS else "even after waiting"
        )
        reason = f"{brief(error)} ({message})"
    elif isinstance(error, LocalEntryNotFoundError) or _is_broken_connection(error):
        reason = f"cannot reach {where} ({brief(error)})"
    else:
        reason = brief(error)
    return UserError(f"Could not {doing}: {reason}.\n{instead}")
