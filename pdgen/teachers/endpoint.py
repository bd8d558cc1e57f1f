"""A client for OpenAI-compatible chat endpoints with structured answers and a cache.

``Endpoint.ask`` sends a ``ChatRequest`` and returns the validated answer. The cache has one entry per request with all
its answers, usable or not. The result depends on that entry only. So a build that is killed and restarted gets the same
results and pays for no answer twice.

With ``dry_run=True`` nothing is sent. Requests that are not in the cache are counted and priced, and the request's
assumed answer is returned.
"""

import collections
import concurrent.futures
import json
import os
import pathlib
import random
import re
import threading
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from pdgen.files import sha256
from pdgen.json_text import decode_json
from pdgen.teachers.chat import AnswerError, ChatRequest, Completion, PaidAnswer, make_retry_body, read_answer
from pdgen.teachers.protocols import TeacherError, TransientError

_MAX_SECONDS = 10**7  # the operating system's clocks end at some 10**9


class RetryPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Timeouts and retries of a request. All times are in seconds.

    Attributes:
      timeout: limit of one attempt, from connecting to the last byte.
      attempts: maximum number of attempts.
      backoff: wait after the first failed attempt. It doubles with each further attempt, and half of it is random.
      longest_wait: maximum wait. The request fails if the server's ``Retry-After`` is longer.

    Raises:
      TeacherError: a value is out of range.
    """

    timeout: float = 120.0
    attempts: int = 6
    backoff: float = 1.0
    longest_wait: float = 120.0

    def __post_init__(self) -> None:
        times = (self.timeout, self.backoff, self.longest_wait)
        if self.attempts < 1 or self.timeout <= 0 or not all(0 <= time <= _MAX_SECONDS for time in times):
            raise TeacherError(
                f"{self}: at least one attempt, a timeout above 0 and no wait that is negative or longer than "
                f"{_MAX_SECONDS:,} s are needed"
            )


class EndpointSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Address, prices and limits of an endpoint.

    Attributes:
      url: base URL, such as "https://api.openai.com/v1"; "/chat/completions" is appended.
      model: model name, sent with every request.
      cache: folder of the answers.
      key_variable: environment variable with the key; "" for a server without keys.
      parameters: further parameters, sent unchanged; some models use other names, such as ``max_completion_tokens``.
      concurrency: maximum number of simultaneous requests of this process.
      answers: maximum number of answers to a request, until one is usable.
      input_price, output_price: price of a million tokens, in any currency.
      patience: timeouts and retries.

    Raises:
      TeacherError: a value is invalid; the message names it.
    """

    url: str
    model: str
    cache: str
    key_variable: str = ""
    parameters: dict[str, Any] = msgspec.field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 1024})
    concurrency: int = 8
    answers: int = 3
    input_price: float = 0.0
    output_price: float = 0.0
    patience: RetryPolicy = RetryPolicy()

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.url)
            complete = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # an impossible port or address
            complete = False
        if not complete or not self.url.isprintable() or " " in self.url:
            raise TeacherError("url: not the base of an interface, such as 'https://host/v1'")
        if parts.username or parts.password or parts.query:
            raise TeacherError(f"url of {parts.hostname}: holds credentials or a query; a key goes into key_variable")
        if not (self.model and self.cache) or "\0" in self.cache:
            raise TeacherError("model and cache must be named")
        for name in ("concurrency", "answers"):
            if getattr(self, name) < 1:
                raise TeacherError(f"{name} = {getattr(self, name)}: at least 1 is needed")


def read_endpoint_settings(path: pathlib.Path) -> EndpointSettings:
    """Read the settings from a JSON file. Raises TeacherError that names it if it is malformed, and OSError."""
    try:
        return decode_json(path.read_bytes(), EndpointSettings)
    except ValueError as fault:  # TeacherError of a value too
        raise TeacherError(f"{path}: {fault}") from None


class Usage(msgspec.Struct):
    """The usage of one task.

    Attributes:
      calls: answers that were paid for; in a dry run, answers that would be.
      cached: answers found in the cache.
      input_tokens, output_tokens: tokens of ``calls``.
    """

    calls: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class UsageLedger:
    """The usage of an endpoint. Thread-safe.

    Attributes:
      tasks: usage by ``ChatRequest.task``.
      retried: failed attempts without an answer, by reason.
      rejected: paid answers that could not be used, by reason.
    """

    def __init__(self, settings: EndpointSettings, dry_run: bool):
        self.tasks: dict[str, Usage] = {}
        self.retried: collections.Counter[str] = collections.Counter()
        self.rejected: collections.Counter[str] = collections.Counter()
        self._settings = settings
        self._dry_run = dry_run
        self._lock = threading.Lock()

    def count_retry(self, reason: str) -> None:
        """Count a failed attempt."""
        with self._lock:
            self.retried[reason] += 1

    def count_rejection(self, reason: str) -> None:
        """Count an answer that cannot be used."""
        with self._lock:
            self.rejected[reason] += 1

    def add(self, task: str, **counts: int) -> None:
        """Add to the fields of the task's ``Usage``."""
        with self._lock:
            usage = self.tasks.setdefault(task, Usage())
            for name, count in counts.items():
                setattr(usage, name, getattr(usage, name) + count)

    def total(self) -> Usage:
        """Return the sum over all tasks."""
        with self._lock:
            return Usage(*(sum(getattr(u, name) for u in self.tasks.values()) for name in Usage.__struct_fields__))

    def price(self, usage: Usage) -> float:
        """Compute the price of the tokens, in the currency of the settings."""
        s = self._settings
        return (usage.input_tokens * s.input_price + usage.output_tokens * s.output_price) / 1e6

    def report(self) -> str:
        """Format a table of all tasks and their sum, and the counts of retries and rejections."""
        header = f"{'task':<20} {'to send' if self._dry_run else 'sent':>9} {'cached':>9} {'tokens in':>12} "
        lines = [header + f"{'tokens out':>12} {'price':>10}{' (estimates)' if self._dry_run else ''}"]
        for task, u in [*sorted(self.tasks.items()), ("all", self.total())]:
            lines.append(
                f"{task:<20} {u.calls:>9,} {u.cached:>9,} {u.input_tokens:>12,} {u.output_tokens:>12,} "
                f"{self.price(u):>10,.2f}"
            )
        for name, counts in (("retried", self.retried), ("rejected", self.rejected)):
            if counts:
                lines.append(f"{name}: " + ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common()))
        return "\n".join(lines)


class Endpoint:
    """A chat endpoint with its cache and its usage. Thread-safe.

    Raises:
      TeacherError: the extra ``endpoint`` is not installed; the URL or a proxy of the environment cannot be used; or,
        except in a dry run, the key's environment variable is missing or malformed.
    """

    def __init__(self, settings: EndpointSettings, dry_run: bool = False):
        try:  # here, so that the settings can be read without the extra
            from pdgen.teachers.answer_cache import AnswerCache
            from pdgen.teachers.transport import ChatClient
        except ImportError as fault:
            raise TeacherError(
                f"a chat endpoint needs the extra 'endpoint' ({fault}): pip install 'pdgen[endpoint]'"
            ) from None
        self.settings = settings
        self.dry_run = dry_run
        self.ledger = UsageLedger(settings, dry_run)
        self._cache = AnswerCache(settings.cache)
        self._slots = threading.Semaphore(settings.concurrency)
        self._assumed: set[str] = set()
        self._lock = threading.Lock()
        self._client = ChatClient(settings.url, settings.patience.timeout)
        if not dry_run:
            _read_key(settings)

    def ask(self, request: ChatRequest) -> Any:
        """Return the answer, an instance of ``request.answer``, from the cache or the server.

        Raises:
          AnswerError: the model refuses, or ``settings.answers`` answers were malformed.
          TeacherError: the server returns an error or does not answer.
        """
        return self._ask(request, threading.Event())

    def map(self, requests: Iterable[ChatRequest]) -> Iterator[Any]:
        """Yield the answers in the order of the requests; a request without an answer yields its AnswerError.

        Requests are read a few ahead. If the iteration is interrupted or closed early, waiting requests are dropped,
        and running requests finish and are cached.

        Raises:
          TeacherError: see ``ask``.
        """
        cancelled = threading.Event()
        pool = concurrent.futures.ThreadPoolExecutor(self.settings.concurrency)
        waiting: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
        try:
            for request in requests:
                waiting.append(pool.submit(self._outcome, request, cancelled))
                if len(waiting) >= 4 * self.settings.concurrency:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            cancelled.set()  # waiting requests end before they are sent
            pool.shutdown()

    def _outcome(self, request: ChatRequest, cancelled: threading.Event) -> Any:
        try:
            return self._ask(request, cancelled)
        except AnswerError as fault:
            return fault

    def _ask(self, request: ChatRequest, cancelled: threading.Event) -> Any:
        body = request.make_body(self.settings.model, self.settings.parameters)
        key = sha256(json.dumps([request.version, body], sort_keys=True).encode())
        if self.dry_run:
            return self._assume(request, key)
        with self._cache.locked(key):
            paid = self._cache.read(key)
            self.ledger.add(request.task, cached=bool(paid))
            while (answer := self._settle(request, paid)) is None or isinstance(answer, AnswerError):
                attempt = make_retry_body(body, paid[-1], answer) if paid else body
                paid = [*paid, self._pay(request, attempt, cancelled)]
                self._cache.write(key, self.settings.model, request.task, paid)
            return answer

    def _settle(self, request: ChatRequest, paid: Sequence[PaidAnswer]) -> Any:
        # Returns the last answer, or its fault if another attempt is allowed, or None if there is no answer yet.
        if not paid:
            return None
        try:
            return read_answer(request, paid[-1])
        except AnswerError as fault:
            if fault.reason == "refused" or len(paid) >= self.settings.answers:
                raise
            return fault

    def _send(self, body: dict[str, Any], cancelled: threading.Event) -> Completion:
        # Counts each failed attempt and waits for max(backoff, Retry-After), until ``cancelled`` is set.
        patience, url, wait = self.settings.patience, self._client.url, 0.0
        for attempt in range(patience.attempts):
            if cancelled.wait(wait):
                raise TeacherError(f"{url}: cancelled")
            try:
                return self._client.send(body, _read_key(self.settings))
            except TransientError as fault:
                self.ledger.count_retry(fault.reason)
                last, asked = str(fault), fault.wait
            if asked > patience.longest_wait:
                limit = f"longest_wait is {patience.longest_wait:.0f} s"
                raise TeacherError(f"{url}: {last}: asks to wait {asked:.0f} s, {limit}")
            doubled = min(patience.backoff * 2**attempt, patience.longest_wait)
            wait = max(asked, doubled * random.uniform(0.5, 1.0))
        raise TeacherError(f"{url}: no answer in {patience.attempts} attempts; the last: {last}")

    def _pay(self, request: ChatRequest, body: dict[str, Any], cancelled: threading.Event) -> PaidAnswer:
        with self._slots:
            reply = self._send(body, cancelled)
        choice = reply.choices[0]
        guess = request.estimate_tokens()  # for servers that return no usage
        paid = PaidAnswer(
            content=choice.message.content or "",
            refusal=choice.message.refusal,
            finish_reason=choice.finish_reason,
            input_tokens=reply.usage.prompt_tokens if reply.usage else guess[0],
            output_tokens=reply.usage.completion_tokens if reply.usage else guess[1],
        )
        self.ledger.add(request.task, calls=1, input_tokens=paid.input_tokens, output_tokens=paid.output_tokens)
        try:
            read_answer(request, paid)
        except AnswerError as fault:
            self.ledger.count_rejection(fault.reason)
        return paid

    def _assume(self, request: ChatRequest, key: str) -> Any:
        paid = self._cache.read(key)
        answer = self._settle(request, paid)
        if answer is not None and not isinstance(answer, AnswerError):
            self.ledger.add(request.task, cached=1)
            return answer
        with self._lock:
            first = key not in self._assumed
            self._assumed.add(key)
        if first:
            tokens = request.estimate_tokens()
            self.ledger.add(request.task, calls=1, input_tokens=tokens[0], output_tokens=tokens[1])
        else:  # a real run would find it in the cache
            self.ledger.add(request.task, cached=1)
        return request.assumed


class EndpointTeacher:
    """A teacher on a chat endpoint. Its methods raise AnswerError if the model gives no usable answer."""

    def __init__(self, endpoint: Endpoint):
        self.name = endpoint.settings.model
        self._endpoint = endpoint


def _read_key(settings: EndpointSettings) -> str:
    # Read at every use and stored in no object, so that no repr and no dump can show it.
    if not settings.key_variable:
        return ""
    key = os.environ.get(settings.key_variable, "").strip()
    if not re.fullmatch(r"[!#-\[\]-~]+", key):  # visible ASCII that JSON does not escape
        raise TeacherError(
            f"environment variable {settings.key_variable} holds no key; export it, or set key_variable to '' "
            "for a server that asks for none"
        )
    return key
