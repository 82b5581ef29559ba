"""One live token per app key, whoever asks for it and whatever dies."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, cast

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from poller import auth
from poller.auth import Token, Tokens, token_of
from poller.errors import GiveUp, NotAsked, TryLater
from tests.conftest import MONDAY_NOON, HandClock

KEY = SecretStr("an-app-key")


class Issuer:
    """Issues token-1, token-2 …, each good for a day."""

    def __init__(self, clock: HandClock) -> None:
        self.clock, self.issued = clock, 0
        self.failure: Exception | None = None

    async def __call__(self) -> Token:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        self.issued += 1
        return Token(SecretStr(f"token-{self.issued}"), self.clock.now() + timedelta(hours=24))


@pytest.fixture
def issuer(clock: HandClock) -> Issuer:
    return Issuer(clock)


def process(redis: Redis, issuer: Issuer) -> Tokens:
    """What one process holds."""
    return Tokens(redis, "test", KEY, issuer, issuer.clock)


async def test_all_processes_of_a_key_share_one_token(fake_redis: Redis, issuer: Issuer):
    """Issuing a second token would kill the first, and with it every other process."""
    tokens = await asyncio.gather(*(process(fake_redis, issuer).current() for _ in range(5)))

    assert {token.get_secret_value() for token in tokens} == {"token-1"}
    assert issuer.issued == 1


async def test_a_token_is_renewed_ten_minutes_before_it_ends(fake_redis: Redis, issuer: Issuer, clock: HandClock):
    tokens = process(fake_redis, issuer)
    await tokens.current()
    clock.advance(24 * 3600 - 601)
    still = await tokens.current()
    clock.advance(2)
    renewed = await tokens.current()

    assert (still.get_secret_value(), renewed.get_secret_value()) == ("token-1", "token-2")


async def test_a_dead_token_is_replaced_once_for_everybody(fake_redis: Redis, issuer: Issuer):
    """Whoever comes second finds another token than the one that failed, and takes that."""
    one, other = process(fake_redis, issuer), process(fake_redis, issuer)
    dead = await one.current()
    await other.current()
    first, second = await asyncio.gather(one.renew(dead), other.renew(dead))

    assert first == second == SecretStr("token-2")
    assert issuer.issued == 2


async def test_a_key_whose_fresh_tokens_die_issues_one_a_minute(fake_redis: Redis, issuer: Issuer, clock: HandClock):
    tokens = process(fake_redis, issuer)
    second = await tokens.renew(await tokens.current())
    clock.advance(5)
    with pytest.raises(TryLater) as refused:
        await tokens.renew(second)
    clock.advance(56)
    third = await tokens.renew(second)

    assert refused.value.wait_s == 55
    assert refused.value.everywhere
    assert third.get_secret_value() == "token-3"


async def test_a_token_that_dies_soon_after_the_start_is_replaced_at_once(fake_redis: Redis, issuer: Issuer):
    """Only a token issued because of a refusal is followed by a pause; the first of a day may just be unlucky."""
    tokens = process(fake_redis, issuer)

    assert (await tokens.renew(await tokens.current())).get_secret_value() == "token-2"


async def test_token_creation_that_keeps_failing_is_given_up(fake_redis: Redis, issuer: Issuer):
    tokens = process(fake_redis, issuer)
    issuer.failure = TryLater("[8006:토큰 생성 실패]", code=8006)
    for _ in range(2):
        with pytest.raises(TryLater):
            await tokens.current()
    with pytest.raises(GiveUp) as given_up:
        await tokens.current()

    assert given_up.value.scope == "key"


async def test_the_key_in_redis_hides_the_app_key(fake_redis: Redis, issuer: Issuer):
    await process(fake_redis, issuer).current()
    names = await fake_redis.keys("*")

    assert len(names) == 1
    assert "an-app-key" not in str(names)
    assert await fake_redis.ttl(names[0]) > 0  # a dead key leaves nothing behind


async def test_somebody_who_issued_while_we_waited_for_the_lock_is_not_outdone(
    fake_redis: Redis, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
):
    """The stored token was the dead one when we looked, and is another by the time we may issue."""
    one, other = process(fake_redis, issuer), process(fake_redis, issuer)
    dead = await one.current()
    await other.current()
    take_lock = fake_redis.set

    async def too_late(*args: Any, **options: Any) -> Any:
        monkeypatch.undo()
        await other.renew(dead)
        return await take_lock(*args, **options)

    monkeypatch.setattr(fake_redis, "set", too_late)
    renewed = await one.renew(dead)

    assert (renewed.get_secret_value(), issuer.issued) == ("token-2", 2)


async def test_a_lock_that_became_another_s_is_not_released(fake_redis: Redis, issuer: Issuer):
    tokens = process(fake_redis, issuer)
    (lock,) = {f"{tokens._key}:lock"}

    async def overtaken() -> Token:
        await fake_redis.set(lock, "another's nonce")
        return await issuer()

    tokens._issue = overtaken
    await tokens.current()

    assert await fake_redis.get(lock) == "another's nonce"


async def test_the_right_to_issue_is_given_back_at_once(fake_redis: Redis, issuer: Issuer):
    tokens = process(fake_redis, issuer)
    await tokens.current()
    issuer.failure = TryLater("not now")
    with pytest.raises(TryLater):
        await tokens.renew(await tokens.current())

    assert await fake_redis.get(f"{tokens._key}:lock") is None


async def test_a_token_takes_the_place_of_the_one_that_failed_and_of_no_other(fake_redis: Redis, issuer: Issuer):
    """A process that was suspended between issuing and writing finds another's token, and takes it."""
    tokens = process(fake_redis, issuer)
    dead = await tokens.current()

    async def suspended() -> Token:
        fields: dict[Any, Any] = {"token": "another", "ends": (issuer.clock.now() + timedelta(hours=20)).isoformat()}
        await fake_redis.hset(tokens._key, mapping=fields)
        return await issuer()

    tokens._issue = suspended
    renewed = await tokens.renew(dead)

    assert renewed.get_secret_value() == "another"
    assert await fake_redis.hget(tokens._key, "token") == "another"


async def test_a_token_that_could_not_be_written_is_written_later_and_not_issued_again(
    fake_redis: Redis, issuer: Issuer
):
    tokens = process(fake_redis, issuer)
    write = tokens._swap

    async def lost(**options: Any) -> Any:
        raise RedisConnectionError("gone")

    tokens._swap = cast("Any", lost)
    with pytest.raises(NotAsked, match="cannot be shared"):
        await tokens.current()
    tokens._swap = write

    assert (await tokens.current()).get_secret_value() == "token-1"
    assert await fake_redis.hget(tokens._key, "token") == "token-1"


async def test_an_issuer_that_crashed_costs_one_more_token_and_no_more(fake_redis: Redis, issuer: Issuer):
    """It held the lock and issued, but wrote nothing: whoever comes when the lock has run out issues once."""
    others = [process(fake_redis, issuer) for _ in range(3)]
    dead = await others[0].current()
    for one in others[1:]:
        await one.current()
    await issuer()
    await fake_redis.set(f"{others[0]._key}:lock", "of the crashed", px=300)
    renewed = await asyncio.gather(*(one.renew(dead) for one in others))

    assert {token.get_secret_value() for token in renewed} == {"token-3"}
    assert issuer.issued == 3


async def test_whoever_issues_gives_up_before_another_may_begin(
    fake_redis: Redis, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(auth, "ISSUE_S", 0.05)
    tokens = process(fake_redis, issuer)

    async def stuck() -> Token:
        await asyncio.Event().wait()
        raise AssertionError

    tokens._issue = stuck
    with pytest.raises(TryLater, match="no token was issued within") as late:
        await tokens.current()

    assert late.value.everywhere
    assert auth.LOCK_S > 12


async def test_the_token_in_use_can_be_had_without_issuing_one(fake_redis: Redis, issuer: Issuer, clock: HandClock):
    tokens = process(fake_redis, issuer)
    nothing = await tokens.without_issuing()
    token = await process(fake_redis, issuer).current()
    stored = await tokens.without_issuing()
    clock.advance(24 * 3600)

    assert (nothing, stored) == (None, token)
    assert await tokens.without_issuing() is None
    assert issuer.issued == 1


def test_the_end_of_a_token_is_korean_time():
    token = token_of({"token": "t", "expires_dt": "20261124120000"}, MONDAY_NOON)

    assert token.ends == MONDAY_NOON + timedelta(hours=24)


def test_a_success_without_a_token_is_no_success():
    with pytest.raises(TryLater):
        token_of({"return_code": 0}, MONDAY_NOON)


def test_a_token_is_never_shown():
    assert "secret-text" not in repr(Token(SecretStr("secret-text"), MONDAY_NOON))
