"""A client that is a dictionary away from its server: what the product asks of redis-py goes in; what a real server
would answer, and what would go wrong on the way, comes out.

`ModelStore` is the real store on such a client, and consumers run on `ModelRedis` as they are, so their errors,
retries and lost replies are the product's own. What is made up is below: the commands they use (`model_server`,
`model_groups`), and their scripts, each written a second time in Python (`model_scripts`). The surprises: a command is
always let wait for a moment, because real ones are, and others run meanwhile; and a pipeline that is no transaction may
be cut between two commands.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from poller.store import Store
from tests.model_groups import Group, Stream
from tests.model_keys import text_of
from tests.model_server import Committed, ModelServer, Saved

__all__ = ["Committed", "Group", "ModelRedis", "ModelServer", "ModelStore", "Saved", "Stream", "no_trouble", "one_turn"]

Value = TypeVar("Value")
Waits = Callable[[], Awaitable[Any]]


def no_trouble(moment: str) -> None:
    """Nothing happens to requests and replies."""


async def one_turn() -> None:
    """The shortest wait: whoever is ready runs, and no time passes."""
    await asyncio.sleep(0)


def _command(name: str) -> Callable[..., Any]:
    """A command of the server as a method of its clients."""

    def method(self: _Commands, *args: Any, **kwargs: Any) -> Any:
        command = getattr(self.server, name)
        return self._ask(name, lambda: command(*args, **kwargs))

    return method


class _Commands:
    """The commands, for a client and for a pipeline alike."""

    server: ModelServer

    def _ask(self, name: str, call: Callable[[], Any], waits: Waits | None = None) -> Any:
        raise NotImplementedError

    get, set, delete, exists, pttl, time = map(_command, ("get", "set", "delete", "exists", "pttl", "time"))
    hget, hset, hdel, hmget, hgetall = map(_command, ("hget", "hset", "hdel", "hmget", "hgetall"))
    lpush, rpush, lpop, lrem = map(_command, ("lpush", "rpush", "lpop", "lrem"))
    lrange, lindex = map(_command, ("lrange", "lindex"))
    xadd, xrange, xrevrange, xlen = map(_command, ("xadd", "xrange", "xrevrange", "xlen"))
    xdel, xtrim, xack, xclaim = map(_command, ("xdel", "xtrim", "xack", "xclaim"))
    xpending, xpending_range = map(_command, ("xpending", "xpending_range"))
    xgroup_create, xgroup_destroy = map(_command, ("xgroup_create", "xgroup_destroy"))
    xgroup_delconsumer = _command("xgroup_delconsumer")
    xinfo_stream, xinfo_groups, xinfo_consumers = map(_command, ("xinfo_stream", "xinfo_groups", "xinfo_consumers"))

    def xreadgroup(
        self,
        groupname: str,
        consumername: str,
        streams: Mapping[str, str],
        count: int | None = None,
        block: int | None = None,
    ) -> Any:
        """XREADGROUP; with `block` it waits so many milliseconds of the loop's time for something new."""

        def read() -> list[Any]:
            return self.server.xreadgroup(groupname, consumername, streams, count)

        waits = None if block is None else lambda: self.server.block(read, set(streams), block)
        return self._ask("xreadgroup", read, waits)

    def eval(self, text: str, numkeys: int, *keys_and_args: object) -> Any:
        """EVAL, which the server remembers. Raises KeyError for a script it does not know by its text."""
        script, texts = self.server.scripts[text], list(map(text_of, keys_and_args))

        def call() -> Any:
            self.server.unloaded.discard(text)
            return script(self.server, texts[:numkeys], texts[numkeys:])

        return self._ask(script.__name__, call)


class _NoConnections:
    """What a client keeps between its commands, which are none here."""

    async def disconnect(self, *, inuse_connections: bool = True) -> None:
        """Nothing is open."""


class ModelRedis(_Commands):
    """A client of a model server, as far as the product uses one.

    `trouble` is told the moment, "before commit" or "after commit" (or another script, or a method of this class), and
    may raise what a client raises: before, the request was lost; after, only its reply. A transaction is "execute". A
    pipeline that is none is "pipeline", and between that each of its commands: what raises there cuts it in two. A
    script that the server has forgotten is asked for twice, with "script_load" between. `wait` passes before each.
    """

    def __init__(
        self,
        server: ModelServer,
        trouble: Callable[[str], None] = no_trouble,
        wait: Callable[[], Awaitable[object]] = one_turn,
    ) -> None:
        self.server, self.trouble, self.wait = server, trouble, wait
        self.connection_pool = _NoConnections()

    async def _ask(self, name: str, call: Callable[[], Any], waits: Waits | None = None) -> Any:
        """One command: there and back. An error is a reply as well, and may be lost like one."""
        await self.wait()
        self.trouble(f"before {name}")
        answer, failed = None, None
        try:
            answer = self.server.perform(call)
            if waits is not None and not answer:
                answer = await waits()
        except ResponseError as error:
            failed = error
        self.trouble(f"after {name}")
        if failed is not None:
            raise failed
        return answer

    def register_script(self, text: str) -> Callable[..., Awaitable[Any]]:
        """A script that the model server knows by its text. Raises KeyError for any other."""
        script = self.server.scripts[text]
        name = script.__name__

        async def run(keys: Sequence[str], args: Sequence[object]) -> Any:
            def call() -> Any:
                if text in self.server.unloaded:
                    raise NoScriptError("No matching script. Please use EVAL.")
                return script(self.server, list(keys), list(map(text_of, args)))

            try:
                return await self._ask(name, call)
            except NoScriptError:
                await self._ask("script_load", lambda: self.server.unloaded.discard(text))
                return await self._ask(name, call)

        return run

    def pipeline(self, *, transaction: bool = True) -> ModelPipeline:
        """Several commands in one trip, with `transaction` all or nothing."""
        return ModelPipeline(self, transaction)

    async def aclose(self) -> None:
        """Nothing is open."""


class _Kept(NamedTuple):
    """A command of a pipeline that was not sent yet."""

    name: str
    call: Callable[[], Any]
    waits: Waits | None


class ModelPipeline(_Commands):
    """Commands kept back, then sent together."""

    def __init__(self, redis: ModelRedis, transaction: bool) -> None:
        self.server = redis.server
        self._redis, self._transaction, self._kept = redis, transaction, list[_Kept]()

    async def __aenter__(self) -> ModelPipeline:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._kept.clear()

    def _ask(self, name: str, call: Callable[[], Any], waits: Waits | None = None) -> ModelPipeline:
        self._kept.append(_Kept(name, call, waits))
        return self

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send them. An error is an answer like another, or with `raise_on_error` the first is raised in the end."""
        kept, self._kept = self._kept, []
        if not kept:
            return []
        if self._transaction:
            answers = await self._redis._ask("execute", lambda: self._together(kept))
        else:
            answers = await self._one_by_one(kept)
        for place, answer in enumerate(answers):
            if raise_on_error and isinstance(answer, ResponseError):
                raise _told(answer, place, kept)
        return cast("list[Any]", answers)

    def _together(self, kept: Sequence[_Kept]) -> list[Any]:
        """MULTI and EXEC: nothing blocks there, and what is refused keeps all from being done."""
        for place, one in enumerate(kept):
            try:
                self.server.may(one.name, queued=True)
            except ResponseError as error:
                raise _told(error, place, kept) from error
        return [_answer_of(one.call) for one in kept]

    async def _one_by_one(self, kept: Sequence[_Kept]) -> list[Any]:
        """Each as if alone, on one connection: who loses that in between does not send the rest."""
        trouble, cuts = self._redis.trouble, self.server.cuts

        def connected(call: Callable[[], Any]) -> Any:
            if self.server.cuts != cuts:
                raise RedisConnectionError("Connection closed by server.")
            return call()

        trouble("before pipeline")
        answers: list[Any] = []
        for name, call, waits in kept:
            try:
                answers.append(await self._redis._ask(name, partial(connected, call), waits))
            except ResponseError as error:
                answers.append(error)
        trouble("after pipeline")
        return answers


def _answer_of(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except ResponseError as error:
        return error


def _told(error: ResponseError, place: int, kept: Sequence[_Kept]) -> ResponseError:
    """The error as redis-py tells it of a pipeline."""
    return type(error)(f"Command # {place + 1} ({kept[place].name}) of pipeline caused error: {error.args}")


class ModelStore(Store):
    """The real store on a model server. `nonce` names the poller, the same in every run."""

    def __init__(self, redis: ModelRedis, prefix: str, nonce: str) -> None:
        super().__init__(cast("Redis", redis), prefix)
        self.nonce, self.rng = nonce, random.Random(nonce)
