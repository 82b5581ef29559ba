"""One live token per app key, whoever asks for it and whatever dies."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from poller.auth import Token, Tokens, token_of
from poller.errors import GiveUp, TryLater
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


def test_the_end_of_a_token_is_korean_time():
    token = token_of({"token": "t", "expires_dt": "20261124120000"}, MONDAY_NOON)

    assert token.ends == MONDAY_NOON + timedelta(hours=24)


def test_a_success_without_a_token_is_no_success():
    with pytest.raises(TryLater):
        token_of({"return_code": 0}, MONDAY_NOON)


def test_a_token_is_never_shown():
    assert "secret-text" not in repr(Token(SecretStr("secret-text"), MONDAY_NOON))
