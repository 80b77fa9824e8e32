"""Client of the Viral Pilot User Management Service, for Python 3.9 and newer with requests.

    from user_management import UserManagement

    users = UserManagement("https://users.example.com", api_key="...")
    with users.reserve("user-1", 100) as reservation:
        answer = call_the_model()
        reservation.tokens_used = answer.tokens

The service hands this file out together with a page that explains it: /clients/user_management.md.
"""

from __future__ import annotations

import email.utils
import ipaddress
import json
import logging
import random
import ssl
import time
import uuid
from datetime import date, datetime, timezone
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Type, Union
from urllib.parse import quote, urlsplit

import requests
import requests.adapters
import urllib3.exceptions

__version__ = "VERSION"

_log = logging.getLogger(__name__)

# Pauses between attempts are drawn from 0 up to a bound that doubles from the first of these to the second, in seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_CONNECT_TIMEOUT = 3.05
# How long a release is tried in seconds: what is not released expires by itself.
_RELEASE_FOR = 3.0


class _Unset:
    def __repr__(self) -> str:
        return "UNSET"


#: Leaves a field of a profile as it is; None clears it.
UNSET: Any = _Unset()


class UserManagementError(Exception):
    """What every failed call raises.

    outcome is "none" where the call changed nothing, and "unknown" where it may have been carried out: call again with
    idempotency_key, and it counts once. reservation is set where a reservation could not be settled.
    """

    outcome: str = "none"
    idempotency_key: Optional[str] = None
    reservation: Optional[Reservation] = None
    #: Seconds after which the service asked to be called again.
    retry_after: Optional[float] = None


class UnavailableError(UserManagementError):
    """The service could not serve the call, or could not be reached, for as long as it was tried again."""


class NoAnswerError(UnavailableError):
    """No complete answer came: no connection, or none that lasted, or nothing within the timeout."""


class UnexpectedAnswerError(UserManagementError):
    """Something answered that is not the service, such as a proxy, or led elsewhere. status is its HTTP status."""

    def __init__(self, message: str, status: int = 0):
        super().__init__(message, status)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


class ProblemError(UserManagementError):
    """The service refused the call. There is a class for each code; a code that is newer than this file has this one."""

    code: str = ""
    _classes: Dict[str, Type[ProblemError]] = {}

    def __init_subclass__(cls) -> None:
        if "code" in vars(cls):
            ProblemError._classes[cls.code] = cls

    def __init__(self, document: Mapping[str, Any]):
        super().__init__(document)
        #: The whole problem document.
        self.document = document
        self.code = str(document.get("code", ""))
        self.status = int(document.get("status") or 0)
        #: A sentence for people.
        self.detail = str(document.get("detail", ""))
        self.request_id = document.get("request_id")
        #: What is wrong with which field: a list of {"field": …, "message": …}.
        self.errors = document.get("errors") or []
        self.required_scope = document.get("required_scope")

    def __str__(self) -> str:
        fields = "".join(f" {e.get('field')} {e.get('message')}." for e in self.errors)
        return f"{self.detail}{fields} ({self.code}, request {self.request_id})"


class SpendingRefusedError(ProblemError):
    """The account may not spend now; the subclass says why."""


class InsufficientTokensError(SpendingRefusedError):
    code = "insufficient_tokens"

    @property
    def tokens_remaining(self) -> int:
        return self.document.get("tokens_remaining", 0)

    @property
    def tokens_required(self) -> int:
        return self.document.get("tokens_required", 0)

    @property
    def next_reset_at(self) -> Optional[str]:
        """When the next allowance comes, None where none will."""
        return self.document.get("next_reset_at")


class UserInactiveError(SpendingRefusedError):
    code = "user_inactive"


class SubscriptionInactiveError(SpendingRefusedError):
    code = "subscription_inactive"


class SubscriptionLapsedError(SpendingRefusedError):
    code = "subscription_lapsed"


class MalformedJSONError(ProblemError):
    code = "malformed_json"


class InvalidTierError(ProblemError):
    code = "invalid_tier"


class InvalidPathError(ProblemError):
    code = "invalid_path"


class UnauthenticatedError(ProblemError):
    code = "unauthenticated"


class ForbiddenError(ProblemError):
    """The key lacks a scope: required_scope."""

    code = "forbidden"


class CrossSiteError(ProblemError):
    code = "cross_site"


class UserNotFoundError(ProblemError):
    code = "user_not_found"


class ReservationNotFoundError(ProblemError):
    code = "reservation_not_found"


class EntryNotFoundError(ProblemError):
    code = "entry_not_found"


class NotFoundError(ProblemError):
    """There is nothing at this path: base_url is wrong, or the service is older than this file."""

    code = "not_found"


class MethodNotAllowedError(ProblemError):
    code = "method_not_allowed"


class UserExistsError(ProblemError):
    code = "user_exists"


class BeingErasedError(ProblemError):
    code = "being_erased"


class ReservationClosedError(ProblemError):
    code = "reservation_closed"


class TooManyReservationsError(ProblemError):
    code = "too_many_reservations"


class RefundExceedsChargeError(ProblemError):
    code = "refund_exceeds_charge"


class RefundTooLateError(ProblemError):
    code = "refund_too_late"


class BalanceOverflowError(ProblemError):
    code = "balance_overflow"


class BodyTooLargeError(ProblemError):
    code = "body_too_large"


class UnsupportedMediaTypeError(ProblemError):
    code = "unsupported_media_type"


class ValidationFailedError(ProblemError):
    """Values are wrong: errors says which."""

    code = "validation_failed"


class IdempotencyKeyReusedError(ProblemError):
    """The key was used with another command on this account."""

    code = "idempotency_key_reused"


class InternalError(ProblemError):
    code = "internal"


class NotAvailableError(ProblemError):
    code = "not_available"


class RateLimitedError(ProblemError, UnavailableError):
    code = "rate_limited"


class OverloadedError(ProblemError, UnavailableError):
    code = "overloaded"


class DatabaseUnavailableError(ProblemError, UnavailableError):
    code = "database_unavailable"


class Answer(Dict[str, Any]):
    """The fields of an answer by their names in the API. There may be more of them in later versions."""

    #: Whether the command had been carried out before under its key.
    replayed: bool = False
    #: The id under which the service's log has the request.
    request_id: Optional[str] = None


class UserManagement:
    """A client, to be shared by the threads of a program.

    base_url       where the service is, such as "https://users.example.com"
    api_key        an API key or a token of the user pool, or a function that returns one for each attempt
    timeout        seconds that an attempt waits for the service to go on
    retry_for      seconds after which a call is not tried again; 0 tries once, math.inf for ever
    allow_http     lets the key go over http:// to other hosts than this one, as inside of a private network
    session        a requests.Session with proxies or certificates of your own

    Calls that change something carry an idempotency key, made once for the call where none is given: it counts once,
    however often it had to be sent. metadata are at most 16 texts by names, kept on the ledger entry.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: Union[str, Callable[[], str], None] = None,
        timeout: float = 15.0,
        retry_for: float = 30.0,
        allow_http: bool = False,
        session: Optional[requests.Session] = None,
    ):
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment or "@" in url.netloc:
            raise ValueError("base_url must be like https://users.example.com, without a user, a query or a fragment")
        if api_key is not None and url.scheme == "http" and not allow_http and not _is_loopback(url.hostname):
            raise ValueError(
                f"the key would go to {url.hostname} in clear: use https://, or allow_http=True inside of a private network"
            )
        if timeout <= 0 or retry_for < 0:
            raise ValueError("timeout must be above 0, and retry_for not below")
        self._base = base_url.rstrip("/")
        self._api_key = api_key
        self._timeout = timeout
        self._retry_for = retry_for
        if session is None:
            session = requests.Session()
            # A proxy of the environment would read what goes over http:// to this host.
            session.trust_env = url.scheme == "https"
            adapter = requests.adapters.HTTPAdapter(pool_connections=1, pool_maxsize=64)
            session.mount(f"{url.scheme}://", adapter)
        self._session = session

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()

    def __enter__(self) -> UserManagement:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # The service itself

    def info(self) -> Answer:
        """Name, version and calls of the service, and the versions and sums of the clients that it hands out."""
        return self._call("GET", "/")

    def health(self) -> Answer:
        """Whether the service and its database work: status is "healthy", "unhealthy" or "shutting_down". Tried once."""
        return self._call("GET", "/health", accept_503=True, retry_for=0)

    def livez(self) -> Answer:
        """Answers while the process lives. Tried once."""
        return self._call("GET", "/livez", retry_for=0)

    def whoami(self) -> Answer:
        """Name and scopes of the key."""
        return self._call("GET", "/whoami")

    def tiers(self) -> Answer:
        """The catalogue, with tokens_per_month -1 for unlimited."""
        return self._call("GET", "/tiers")

    # Users

    def create_user(
        self, user_id: str, *, username: Optional[str] = None, email: Optional[str] = None, idempotency_key: Optional[str] = None
    ) -> Answer:
        """Makes an account; UserExistsError where there is one."""
        body = {"cognito_user_id": user_id, "username": username, "email": email}
        return self._change("POST", "/user", body, idempotency_key)

    def put_user(
        self,
        user_id: str,
        *,
        username: Optional[str] = UNSET,
        email: Optional[str] = UNSET,
        metadata: Optional[Mapping[str, str]] = None,
        idempotency_key: Optional[str] = None,
    ) -> Answer:
        """Makes an account, or sets what is given on the one that there is."""
        body = {"username": username, "email": email, "metadata": metadata}
        return self._change("PUT", _user(user_id), body, idempotency_key)

    def get_user(self, user_id: str) -> Answer:
        """The account; a free one is made where there is none."""
        return self._call("GET", _user(user_id))

    def update_user(
        self,
        user_id: str,
        *,
        username: Optional[str] = UNSET,
        email: Optional[str] = UNSET,
        subscription_status: str = UNSET,
        is_active: bool = UNSET,
        metadata: Optional[Mapping[str, str]] = None,
        idempotency_key: Optional[str] = None,
    ) -> Answer:
        """Sets what is given; None clears username and email."""
        body = {
            "username": username,
            "email": email,
            "subscription_status": subscription_status,
            "is_active": is_active,
            "metadata": metadata,
        }
        return self._change("PATCH", _user(user_id), body, idempotency_key)

    def deactivate_user(self, user_id: str, *, idempotency_key: Optional[str] = None) -> None:
        """Ends the open reservations and makes the account inactive."""
        self._call("DELETE", _user(user_id), key=_key(idempotency_key))

    def erase_user(self, user_id: str) -> bool:
        """Removes what is personal. False while that goes on by itself; UserNotFoundError once it is done."""
        try:
            return self._call("DELETE", _user(user_id), query={"erase": "true"}).status == 204
        except UserNotFoundError as error:
            if error.outcome == "unknown":  # an attempt before had no answer: it was the one that erased
                return True
            raise

    def users(
        self,
        *,
        tier: Optional[str] = None,
        subscription_status: Optional[str] = None,
        is_active: Optional[bool] = None,
        low_balance: Optional[bool] = None,
        renews_before: Union[str, date, datetime, None] = None,
        q: Optional[str] = None,
        page_size: int = 200,
    ) -> Iterator[Dict[str, Any]]:
        """All accounts that fit, read page by page. q is how an id, a username or an address begins."""
        query = {
            "tier": tier,
            "subscription_status": subscription_status,
            "is_active": is_active,
            "low_balance": low_balance,
            "renews_before": renews_before,
            "q": q,
            "limit": page_size,
        }
        return self._items("/users", "users", query)

    def status(self, user_id: str, *, create: bool = False) -> Answer:
        """Whether the user may make a request (can_make_request), and why not (reason). create makes a new user first."""
        return self._call("GET", _user(user_id, "status"), query={"create": True if create else None})

    def change_tier(
        self,
        user_id: str,
        tier: str,
        *,
        renewal_date: Union[str, date, datetime, None] = None,
        metadata: Optional[Mapping[str, str]] = None,
        idempotency_key: Optional[str] = None,
    ) -> Answer:
        """Sets the tier and the renewal date, which None clears."""
        body = {"tier": tier, "renewal_date": _time(renewal_date), "metadata": metadata}
        return self._change("PUT", _user(user_id, "tier"), body, idempotency_key)

    # Tokens

    def consume(
        self,
        user_id: str,
        tokens: int = 1,
        *,
        metadata: Optional[Mapping[str, str]] = None,
        idempotency_key: Optional[str] = None,
    ) -> Answer:
        """Charges tokens; SpendingRefusedError where the account may not."""
        body = {"tokens_to_consume": tokens, "metadata": metadata}
        return self._change("POST", _user(user_id, "consume-tokens"), body, idempotency_key)

    def add_tokens(
        self,
        user_id: str,
        tokens: int,
        *,
        metadata: Optional[Mapping[str, str]] = None,
        idempotency_key: Optional[str] = None,
    ) -> Answer:
        """Adds top-ups, which do not lapse."""
        body = {"tokens_to_add": tokens, "metadata": metadata}
        return self._change("POST", _user(user_id, "add-tokens"), body, idempotency_key)

    def refund(
        self,
        user_id: str,
        entry_id: str,
        tokens: Optional[int] = None,
        *,
        metadata: Optional[Mapping[str, str]] = None,
        idempotency_key: Optional[str] = None,
    ) -> Answer:
        """Gives back what a consume or settle entry charged: all that is left of it, or a part."""
        body = {"entry_id": entry_id, "tokens": UNSET if tokens is None else tokens, "metadata": metadata}
        return self._change("POST", _user(user_id, "refunds"), body, idempotency_key)

    # Reservations

    def reserve(
        self,
        user_id: str,
        tokens: int,
        *,
        ttl_seconds: Optional[int] = None,
        metadata: Optional[Mapping[str, str]] = None,
        idempotency_key: Optional[str] = None,
    ) -> Reservation:
        """Sets tokens aside for ttl_seconds (600), at once; with it in a with statement they are settled at its end."""
        body = {"tokens": tokens, "ttl_seconds": UNSET if ttl_seconds is None else ttl_seconds, "metadata": metadata}
        answer = self._change("POST", _user(user_id, "reservations"), body, idempotency_key)
        return Reservation(self, user_id, answer)

    def get_reservation(self, user_id: str, reservation_id: str) -> Answer:
        return self._call("GET", _user(user_id, "reservations", reservation_id))

    def reservations(self, user_id: str, *, status: str = "open", page_size: int = 200) -> Iterator[Dict[str, Any]]:
        """The account's reservations, read page by page: open, settled, released, expired or all."""
        query = {"status": status, "limit": page_size}
        return self._items(_user(user_id, "reservations"), "reservations", query)

    def extend(self, user_id: str, reservation_id: str, ttl_seconds: int, *, idempotency_key: Optional[str] = None) -> Answer:
        """Lets an open reservation expire ttl_seconds from now."""
        path = _user(user_id, "reservations", reservation_id, "extend")
        return self._change("POST", path, {"ttl_seconds": ttl_seconds}, idempotency_key)

    def settle(
        self,
        user_id: str,
        reservation_id: str,
        tokens_used: int,
        *,
        metadata: Optional[Mapping[str, str]] = None,
        idempotency_key: Optional[str] = None,
    ) -> Answer:
        """Charges what it cost. For seven days after a reservation has expired it is charged all the same: late is True."""
        path = _user(user_id, "reservations", reservation_id, "settle")
        return self._change("POST", path, {"tokens_used": tokens_used, "metadata": metadata}, idempotency_key)

    def release(
        self,
        user_id: str,
        reservation_id: str,
        *,
        metadata: Optional[Mapping[str, str]] = None,
        idempotency_key: Optional[str] = None,
    ) -> Answer:
        """Gives all of it back."""
        path = _user(user_id, "reservations", reservation_id, "release")
        return self._change("POST", path, {"metadata": metadata}, idempotency_key)

    # Ledgers and usage

    def ledger(
        self,
        user_id: str,
        *,
        kind: Optional[str] = None,
        since: Union[str, datetime, None] = None,
        until: Union[str, datetime, None] = None,
        page_size: int = 200,
    ) -> Iterator[Dict[str, Any]]:
        """The entries of one account, newest first, read page by page. since is inclusive, until exclusive."""
        query = {"kind": kind, "since": since, "until": until, "limit": page_size}
        return self._items(_user(user_id, "ledger"), "entries", query)

    def feed(
        self, *, after: Optional[str] = None, kind: Optional[str] = None, wait: int = 0, page_size: int = 1000
    ) -> Iterator[Dict[str, Any]]:
        """Pages of the entries of all accounts, oldest first: {"entries": […], "next_cursor": …}.

        Keep next_cursor together with what became of the page and give it as after to go on there; "latest" begins with
        what comes from now on. With wait, in seconds up to 25, there is no end: it waits for more.
        """
        query = {"after": after, "kind": kind, "wait": wait or None, "limit": page_size}
        return self._feed(query, wait)

    def _feed(self, query: Dict[str, Any], wait: int) -> Iterator[Dict[str, Any]]:
        while True:
            page = self._call("GET", "/ledger", query=query, timeout=self._timeout + wait)
            if page["next_cursor"] != query["after"]:  # it moves on past entries of other kinds too
                yield page
            elif not wait:
                return
            query = {**query, "after": page["next_cursor"]}

    def usage(
        self,
        user_id: str,
        *,
        from_date: Union[str, date, None] = None,
        to_date: Union[str, date, None] = None,
        by: Optional[str] = None,
    ) -> Answer:
        """What the account was charged each day, both dates included; by divides it by a usage dimension."""
        return self._call("GET", _user(user_id, "usage"), query={"from": from_date, "to": to_date, "by": by})

    def platform_usage(
        self, *, from_date: Union[str, date, None] = None, to_date: Union[str, date, None] = None, by: Optional[str] = None
    ) -> Answer:
        """What all accounts together were charged each day; by may be "tier" too."""
        return self._call("GET", "/usage", query={"from": from_date, "to": to_date, "by": by})

    # How a call is made

    def _items(self, path: str, name: str, query: Dict[str, Any]) -> Iterator[Dict[str, Any]]:
        while True:
            page = self._call("GET", path, query=query)
            yield from page[name]
            if page["next_cursor"] is None:
                return
            query = {**query, "cursor": page["next_cursor"]}

    def _change(
        self, method: str, path: str, body: Dict[str, Any], key: Optional[str], retry_for: Optional[float] = None
    ) -> Answer:
        body = {name: value for name, value in body.items() if value is not UNSET and (name != "metadata" or value is not None)}
        return self._call(method, path, body=body, key=_key(key), retry_for=retry_for)

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Optional[Mapping[str, Any]] = None,
        body: Optional[Dict[str, Any]] = None,
        key: Optional[str] = None,
        timeout: Optional[float] = None,
        retry_for: Optional[float] = None,
        accept_503: bool = False,
    ) -> _Answer:
        headers = {"Accept": "application/json", "User-Agent": f"user-management-python/{__version__}"}
        if key is not None:
            headers["Idempotency-Key"] = key
        data = None
        if body is not None:
            data = json.dumps(body, allow_nan=False).encode()
            headers["Content-Type"] = "application/json"
        query = {name: _parameter(value) for name, value in (query or {}).items() if value is not None}
        patience = timeout = self._timeout if timeout is None else timeout
        give_up = time.monotonic() + (self._retry_for if retry_for is None else retry_for)
        bound = _FIRST_PAUSE
        uncertain = False
        while True:
            error: UserManagementError
            cause: Optional[Exception] = None
            try:
                response = self._session.request(
                    method,
                    self._base + path,
                    params=query,
                    data=data,
                    headers=headers,
                    auth=self._authorize,
                    timeout=(min(_CONNECT_TIMEOUT, patience), patience),
                    allow_redirects=False,
                )
                # Where it is wrong what came is not complete, or from elsewhere.
                answer, error, again = _read(response, accept_503)
                if answer is not None:
                    return answer
            except requests.exceptions.RequestException as e:
                if not isinstance(e, _NO_ANSWER):
                    raise
                answer, cause = None, e
                error, again = _no_answer(e, f"{method} {path}")
            # The service looks for the key before it judges the account: a refusal then settles what became of the
            # attempts before.
            settled = key is not None and isinstance(error, ProblemError) and error.code not in _BEFORE_THE_KEY
            if method == "GET" or (settled and error.outcome == "none"):
                error.outcome = "none"
            elif uncertain:
                error.outcome = "unknown"
            uncertain = uncertain or error.outcome == "unknown"
            error.idempotency_key = key
            pause = (error.retry_after or 0) + random.uniform(0, bound)
            if not again or time.monotonic() + pause > give_up:
                raise error from cause
            _log.debug("%s %s is tried again in %.2f s: %s", method, path, pause, error)
            time.sleep(pause)
            bound = min(2 * bound, _LONGEST_PAUSE)
            patience = min(timeout, max(1.0, give_up - time.monotonic()))

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        key = self._api_key() if callable(self._api_key) else self._api_key
        if key is not None:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError("api_key must be printable ASCII without blanks")
            request.headers["Authorization"] = f"Bearer {key}"
        return request


class Reservation:
    """Tokens that are set aside.

    In a with statement, set tokens_used to what it cost, or call settle. At the end of the block that is charged; where
    the block said nothing, or failed, all is given back. An error of the block comes through whatever becomes of the
    reservation, which expires by itself.
    """

    def __init__(self, client: UserManagement, user_id: str, answer: Answer):
        self._client = client
        self.user_id = user_id
        self.id: str = answer["reservation_id"]
        #: The latest answer about the reservation.
        self.answer = answer
        #: What it cost, once that is known.
        self.tokens_used: Optional[int] = None
        self._closed = False
        self._settle_error: Optional[BaseException] = None

    def settle(
        self, tokens_used: int, *, metadata: Optional[Mapping[str, str]] = None, idempotency_key: Optional[str] = None
    ) -> Answer:
        """Charges what it cost. Where it fails nothing is given back: settle it later, from here or by its id."""
        self.tokens_used = tokens_used
        try:
            answer = self._client.settle(
                self.user_id, self.id, tokens_used, metadata=metadata, idempotency_key=idempotency_key
            )
        except UserManagementError as error:
            error.reservation = self
            self._settle_error = error
            raise
        return self._close(answer)

    def release(self, *, metadata: Optional[Mapping[str, str]] = None, idempotency_key: Optional[str] = None) -> Answer:
        """Gives all of it back."""
        return self._close(
            self._client.release(self.user_id, self.id, metadata=metadata, idempotency_key=idempotency_key)
        )

    def extend(self, ttl_seconds: int, *, idempotency_key: Optional[str] = None) -> Answer:
        """Lets it expire ttl_seconds from now, at most 24 hours after it was made."""
        self.answer = self._client.extend(self.user_id, self.id, ttl_seconds, idempotency_key=idempotency_key)
        return self.answer

    def _close(self, answer: Answer) -> Answer:
        self._closed = True
        self.answer = answer
        return answer

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, kind: Any, error: Optional[BaseException], trace: Any) -> None:
        if self._closed or (error is not None and error is self._settle_error):
            return
        if self.tokens_used is None:
            self._try_release()
        elif error is None:
            self.settle(self.tokens_used)
        else:
            try:
                self.settle(self.tokens_used)
            except Exception as failed:  # the block's error counts
                _log.error("reservation %s has to be settled with %s later: %s", self.id, self.tokens_used, failed)

    def _try_release(self) -> None:
        path = _user(self.user_id, "reservations", self.id, "release")
        try:
            self._close(self._client._change("POST", path, {}, None, min(_RELEASE_FOR, self._client._retry_for)))
        except Exception as failed:  # it costs nobody anything, and the block's result or error counts
            _log.warning("reservation %s is left to expire: %s", self.id, failed)


class _Answer(Answer):
    status: int = 0


_NO_ANSWER = (
    requests.exceptions.ConnectionError,
    requests.exceptions.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
)

# Codes of answers that are given before the service looks for the key.
_BEFORE_THE_KEY = ("unauthenticated", "forbidden", "cross_site", "rate_limited", "overloaded", "database_unavailable", "internal")


def _no_answer(error: Exception, call: str) -> tuple[NoAnswerError, bool]:
    """The failure, and whether it may pass."""
    failure = NoAnswerError(f"{call}: no answer: {error}")
    causes = list(_causes(error))
    untrusted = any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes)
    sent = not untrusted and not any(
        isinstance(cause, (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)) for cause in causes
    )
    failure.outcome = "unknown" if sent else "none"
    return failure, not untrusted


def _causes(error: Any) -> Iterator[BaseException]:
    """What an error of requests is made of."""
    seen: List[BaseException] = []
    waiting = [error]
    while waiting:
        error = waiting.pop()
        if not isinstance(error, BaseException) or any(error is other for other in seen):
            continue
        seen.append(error)
        yield error
        waiting += [*error.args, getattr(error, "reason", None), error.__cause__, error.__context__]


def _read(response: requests.Response, accept_503: bool) -> tuple[Optional[_Answer], UserManagementError, bool]:
    """The answer, or what is wrong and whether it may pass."""
    status = response.status_code
    mime = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    document: Any = None
    if mime in ("application/json", "application/problem+json"):
        try:
            document = json.loads(response.content)
        except ValueError:
            pass
    complete = isinstance(document, dict)
    error: UserManagementError
    success = status == 204 or (status == 202 and not response.content) or (complete and 200 <= status < 300)
    if success or (accept_503 and status == 503 and complete and mime == "application/json"):
        answer = _Answer(document or {})
        answer.status = status
        answer.replayed = response.headers.get("Idempotency-Replayed") == "true"
        answer.request_id = response.headers.get("X-Request-Id")
        return answer, UserManagementError(), False
    if complete and mime == "application/problem+json":
        code = str(document.get("code", ""))
        error = ProblemError._classes.get(code, ProblemError)(document)
        error.outcome = document.get("outcome") or ("unknown" if status == 500 else "none")
    elif 300 <= status < 400:
        error = UnexpectedAnswerError(
            f"it leads to {response.headers.get('Location')}, which is not followed so that no key goes along: correct base_url",
            status,
        )
    else:
        error = UnexpectedAnswerError(f"status {status} without an answer of the service", status)
        error.outcome = "unknown" if status < 300 or status >= 500 else "none"
    error.retry_after = _retry_after(response.headers.get("Retry-After"))
    garbled = not complete and mime in ("application/json", "application/problem+json")
    return None, error, status in (429, 502, 503, 504) or garbled


def _retry_after(value: Optional[str]) -> Optional[float]:
    """Seconds from a header that has them, or a date."""
    if not value:
        return None
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        at = email.utils.parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=timezone.utc)
    return max(0.0, (at - datetime.now(timezone.utc)).total_seconds())


def _key(key: Optional[str]) -> str:
    """The key of a call, made here where none is given: before the first attempt, and for all of them."""
    if key is None:
        return str(uuid.uuid4())
    if not 1 <= len(key) <= 255 or not key.isascii() or not key.isprintable() or key != key.strip():
        raise ValueError("idempotency_key must be 1 to 255 printable ASCII characters without blanks around them")
    return key


def _user(user_id: str, *rest: str) -> str:
    """The path of what belongs to a user, whose id may have any characters."""
    for part in (user_id, *rest):
        if not isinstance(part, str):
            raise TypeError(f"an id must be a str, not {type(part).__name__}")
        if part in ("", ".", ".."):
            raise ValueError(f"{part!r} is no id")
    return "/".join(["/user", *(quote(part, safe="") for part in (user_id, *rest))])


def _time(value: Union[str, date, datetime, None]) -> Optional[str]:
    if isinstance(value, datetime) and value.tzinfo is None:
        raise ValueError("a datetime needs a time zone: datetime.now(timezone.utc)")
    return value.isoformat() if isinstance(value, date) else value


def _parameter(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(_time(value))


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
