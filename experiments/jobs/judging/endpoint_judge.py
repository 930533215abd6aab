"""A judge at an address: any server that speaks the chat completions of OpenAI, such as vLLM, SGLang or llama.cpp."""

import asyncio
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import aiohttp
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from experiments.jobs.judging.judge import Judge, JudgeRequest
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_positive

# Statuses of a server that is busy or starting: asking again may help.
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504)


class _PassingError(Exception):
    """What may be gone when one asks again."""


class EndpointJudge(Judge):
    """Asks a server, several requests at a time, at temperature 0.

    Args:
        address: Of the API, such as ``http://127.0.0.1:8000/v1``.
        model: Name of the model, as the server knows it.
        api_key_variable: Environment variable that holds the key; None sends none.
        num_parallel: Requests under way at a time.
        max_tokens: Where an answer is cut off.
        timeout_s: How long one request may take.
        num_attempts: How often a request is sent to a server that is busy or does not answer.
        first_wait_s: Wait before the second attempt; each further one takes twice as long.

    Raises:
        UserError: If a number is out of range, or the address is none.
    """

    def __init__(
        self,
        address: str,
        model: str,
        api_key_variable: str | None = None,
        num_parallel: int = 8,
        max_tokens: int = 16,
        timeout_s: float = 120.0,
        num_attempts: int = 5,
        first_wait_s: float = 1.0,
    ) -> None:
        require_at_least(1, num_parallel=num_parallel, max_tokens=max_tokens, num_attempts=num_attempts)
        require_positive(timeout_s=timeout_s, first_wait_s=first_wait_s)
        if not address.startswith(("http://", "https://")):
            raise UserError(f"address is {address!r}; give one such as http://127.0.0.1:8000/v1")
        self.address, self.model, self.api_key_variable = address.rstrip("/"), model, api_key_variable
        self.num_parallel, self.max_tokens = num_parallel, max_tokens
        self.timeout_s, self.num_attempts, self.first_wait_s = timeout_s, num_attempts, first_wait_s

    def describe(self) -> dict[str, Any]:
        """See :class:`Judge`; the address does not count, since a model may move."""
        return {"judge": "chat completions, temperature 0", "name": self.model, "max_tokens": self.max_tokens}

    def ask(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[JudgeRequest, str]]:
        """See :class:`Judge`."""
        headers = self._headers()
        waiting = iter(requests)
        with asyncio.Runner() as runner:
            session = runner.run(self._open(headers))
            under_way: set[asyncio.Task[tuple[JudgeRequest, str]]] = set()
            try:
                while True:
                    while len(under_way) < self.num_parallel and (request := next(waiting, None)) is not None:
                        under_way.add(runner.get_loop().create_task(self._ask(session, request)))
                    if not under_way:
                        return
                    done, under_way = runner.run(_first_of(under_way))
                    for task in done:
                        yield task.result()
            finally:
                runner.run(_close(session, under_way))

    def _headers(self) -> dict[str, str]:
        if self.api_key_variable is None:
            return {}
        key = os.environ.get(self.api_key_variable)
        if not key:
            raise UserError(f"the environment variable {self.api_key_variable} is not set; put the judge's key into it")
        return {"Authorization": f"Bearer {key}"}

    async def _open(self, headers: dict[str, str]) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=self.timeout_s))

    async def _ask(self, session: aiohttp.ClientSession, request: JudgeRequest) -> tuple[JudgeRequest, str]:
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(_PassingError),
            stop=stop_after_attempt(self.num_attempts),
            wait=wait_exponential(multiplier=self.first_wait_s, max=60.0),
            reraise=True,
        )
        try:
            return request, await attempts(self._ask_once, session, request)
        except _PassingError as error:
            raise UserError(
                f"the judge at {self.address} failed {self.num_attempts} times ({error}); start it or fix the address. "
                "Verdicts so far are kept: run the same command again"
            ) from error

    async def _ask_once(self, session: aiohttp.ClientSession, request: JudgeRequest) -> str:
        messages = [{"role": "system", "content": request.system}, {"role": "user", "content": request.text}]
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.max_tokens}
        try:
            async with session.post(f"{self.address}/chat/completions", json=body) as response:
                text = await response.text()
                if response.status in _PASSING:
                    raise _PassingError(f"status {response.status}: {text[:200]}")
                if response.status != 200:
                    raise UserError(
                        f"the judge at {self.address} refuses a request with status {response.status} ({text[:200]}); "
                        f"check address, model ({self.model!r}) and api_key_variable ({self.api_key_variable})"
                    )
                return _content(text, self.address)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _PassingError(f"{type(error).__name__}: {error}") from error


def _content(answer: str, address: str) -> str:
    try:
        content = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"the judge at {address} answers with {answer[:200]}, which is no chat completion") from error
    return "" if content is None else str(content)


async def _first_of(tasks: set[asyncio.Task[Any]]) -> tuple[set[asyncio.Task[Any]], set[asyncio.Task[Any]]]:
    return await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


async def _close(session: aiohttp.ClientSession, tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await session.close()
