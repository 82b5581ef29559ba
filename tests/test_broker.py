"""Pages, dead tokens and broken answers, against a broker that plays what it is given."""

from __future__ import annotations

import json

import httpx
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from poller.catalogue import tr_named
from poller.clock import Clock
from poller.errors import GiveUp, NotWhole, SkipTarget, TryLater
from tests.conftest import broker_for

INDICES = tr_named("ka20003").target({"inds_cd": "001"})
STOCKS = tr_named("ka20002").target({"inds_cd": "001", "stex_tp": "1"})
OK = {"return_code": 0, "return_msg": "정상적으로 처리되었습니다"}
DEAD = {"return_code": 3, "return_msg": "인증에 실패했습니다[8005:Token이 유효하지 않습니다]"}


def page(*codes: str, more: str = "") -> httpx.Response:
    rows = [{"stk_cd": code, "stk_nm": code} for code in codes]
    return httpx.Response(
        200, json={"inds_stkpc": rows, **OK}, headers={"cont-yn": "Y", "next-key": more} if more else {"cont-yn": "N"}
    )


class Script:
    """Answers token calls itself, and data calls from a list; remembers every request."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers, self.requests, self.tokens = list(answers), list[httpx.Request](), 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/oauth2/token":
            self.tokens += 1
            return httpx.Response(200, json={"token": f"token-{self.tokens}", "expires_dt": "20991231235959", **OK})
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_a_walk_collects_every_page_and_resends_the_same_body(fake_redis: Redis):
    script = Script(page("000020", more="a"), page("000040", more="b"), page("000050"))
    async with broker_for(fake_redis, script, Clock()) as client:
        answer = await client.fetch(STOCKS)

    assert len(answer.pages) == 3
    assert [request.headers.get("next-key") for request in script.requests] == [None, "a", "b"]
    assert {request.content for request in script.requests} == {script.requests[0].content}
    assert json.loads(script.requests[0].content) == {"inds_cd": "001", "mrkt_tp": "0", "stex_tp": "1"}
    assert script.requests[0].headers["api-id"] == "ka20002"
    assert script.requests[0].headers["authorization"] == "Bearer token-1"


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([page("000020", more="a"), page("000040", more="a")], "page 2 repeats its next-key"),
        (
            [page("000020", more="a"), page("000040", more="b"), page("000050", more="a")],
            "page 3 repeats its next-key: the walk goes in a circle",
        ),
        ([page("000020", more="a"), page("000020", more="b")], "page 2 brings no row that is new"),
        (
            [page("000020", "000040", more="a"), page("000050", more="b"), page("000040", "000020")],
            "page 3 brings no row that is new: two pages were mixed up",
        ),
        ([page("000020", more="a"), page(more="b")], "is empty"),
        (
            [httpx.Response(200, json={"inds_stkpc": [{"stk_cd": "1"}], **OK}, headers={"cont-yn": "Y"})],
            "without a next-key",
        ),
        ([page(f"{number:06}", more=f"after {number}") for number in range(60)], "more than 60 pages"),
    ],
)
async def test_a_walk_that_cannot_be_finished_is_not_whole(fake_redis: Redis, answers: list[httpx.Response], why: str):
    """Half a table compared with a whole one would look like removals."""
    async with broker_for(fake_redis, Script(*answers), Clock()) as client:
        with pytest.raises(NotWhole, match=why) as error:
            await client.fetch(STOCKS)

    assert len(error.value.bodies) == len(answers)


@pytest.mark.parametrize(
    "pages",
    [
        [page("000020", "000040", more="a"), page("000040", "000050")],
        [page("000020", "000020", more="a"), page("000040")],
        [page("000020", more="a"), page()],
    ],
    ids=["a row slid over the border", "a code repeated within a page", "an empty last page"],
)
async def test_a_later_page_may_repeat_rows_as_long_as_it_is_not_an_earlier_one(
    fake_redis: Redis, pages: list[httpx.Response]
):
    """The pages of a live market are not one instant; and a broker that counts in hundreds may end on nothing."""
    async with broker_for(fake_redis, Script(*pages), Clock()) as client:
        answer = await client.fetch(STOCKS)

    assert len(answer.pages) == 2


async def test_rows_before_the_opening_have_no_time_and_are_told_apart_all_the_same(fake_redis: Redis):
    """ka20001 may leave the time empty then; two pages of such rows are two pages."""

    def ticks(volume: str, more: str = "") -> httpx.Response:
        body = {"cur_prc": "1", "inds_cur_prc_tm": [{"tm_n": "", "trde_qty_n": volume}], **OK}
        return httpx.Response(200, json=body, headers={"cont-yn": "Y", "next-key": more} if more else {})

    quote = tr_named("ka20001").target({"inds_cd": "001"})
    async with broker_for(fake_redis, Script(ticks("1", more="a"), ticks("2")), Clock()) as client:
        assert len((await client.fetch(quote)).pages) == 2

    async with broker_for(fake_redis, Script(ticks("1", more="a"), ticks("1")), Clock()) as client:
        with pytest.raises(NotWhole, match="no row that is new"):
            await client.fetch(quote)


async def test_a_quota_refusal_in_mid_walk_is_not_the_end_of_the_list(fake_redis: Redis):
    refusal = httpx.Response(
        429, json={"return_code": 5, "return_msg": "[1700:허용된 요청 개수를 초과하였습니다. 유량=5]"}
    )
    async with broker_for(fake_redis, Script(page("000020", more="a"), refusal), Clock()) as client:
        with pytest.raises(TryLater) as error:
            await client.fetch(STOCKS)

    assert (error.value.wait_s, error.value.refused, client.counts.refusals) == (1.3, True, 1)


async def test_a_dead_token_is_renewed_once_and_the_walk_starts_again(fake_redis: Redis):
    """The next-key belongs to the token that died with it."""
    script = Script(page("000020", more="a"), httpx.Response(200, json=DEAD), page("000020", more="c"), page("000040"))
    async with broker_for(fake_redis, script, Clock()) as client:
        answer = await client.fetch(STOCKS)

    assert len(answer.pages) == 2
    assert [request.headers["authorization"][-1] for request in script.requests] == ["1", "1", "2", "2"]


async def test_a_token_that_dies_on_page_three_costs_the_walk_and_no_row(fake_redis: Redis):
    pages = [page("000020", more="a"), page("000040", more="b"), page("000050")]
    script = Script(*pages[:2], httpx.Response(200, json=DEAD), *pages)
    async with broker_for(fake_redis, script, Clock()) as client:
        answer = await client.fetch(STOCKS)

    assert [found["inds_stkpc"] for found in answer.pages] == [one.json()["inds_stkpc"] for one in pages]
    assert [request.headers.get("next-key") for request in script.requests] == [None, "a", "b", None, "a", "b"]
    assert [request.headers["authorization"][-1] for request in script.requests] == list("111222")
    assert script.tokens == 2


async def test_a_message_that_repeats_a_secret_is_starred(fake_redis: Redis):
    """No broker was seen to do it; should one, the key still appears in no log."""
    repeats = {"return_code": 3, "return_msg": "[8001:what-is-secret]"}
    async with broker_for(fake_redis, lambda request: httpx.Response(200, json=repeats), Clock()) as client:
        client._secret_key = SecretStr("what-is-secret")
        client.reread = lambda: (client._app_key, client._secret_key)
        with pytest.raises(GiveUp) as error:
            await client.sign_in()

    assert "what-is-secret" not in str(error.value)
    assert "[8001:***]" in str(error.value)


async def test_a_fresh_token_that_is_refused_as_well_waits(fake_redis: Redis):
    script = Script(*(httpx.Response(200, json=DEAD) for _ in range(2)))
    async with broker_for(fake_redis, script, Clock()) as client:
        with pytest.raises(TryLater):
            await client.fetch(INDICES)

    assert script.tokens == 2


async def test_a_token_of_the_other_environment_needs_a_person(fake_redis: Redis):
    wrong = {"return_code": 3, "return_msg": "[8031:투자구분이 달라 Token을 사용할 수가 없습니다]"}
    script = Script(*(httpx.Response(200, json=wrong) for _ in range(2)))
    async with broker_for(fake_redis, script, Clock()) as client:
        with pytest.raises(GiveUp, match="environment") as error:
            await client.fetch(INDICES)

    assert error.value.scope == "key"


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(500),
        httpx.Response(200, html="<html>점검 중입니다</html>"),
        httpx.Response(200, content=b'{"all_inds_idex":[{"stk_cd":"001"'),
        httpx.Response(200, content=b"[]"),
        httpx.Response(200, json={"return_code": 1, "return_msg": "[1999:예기치 못한 에러]"}),
        httpx.ReadTimeout("too slow"),
        httpx.RemoteProtocolError("Server disconnected without sending a response."),
    ],
    ids=repr,
)
async def test_an_answer_that_is_none_is_tried_later(fake_redis: Redis, answer: httpx.Response | Exception):
    async with broker_for(fake_redis, Script(answer), Clock()) as client:
        with pytest.raises(TryLater):
            await client.fetch(INDICES)


async def test_an_unreachable_broker_says_what_to_check(fake_redis: Redis):
    async with broker_for(fake_redis, Script(httpx.ConnectError("refused")), Clock()) as client:
        with pytest.raises(TryLater, match="http://broker cannot be reached: check the network") as error:
            await client.fetch(INDICES)

    assert error.value.everywhere


async def test_a_stock_that_does_not_exist_is_skipped(fake_redis: Redis):
    gone = httpx.Response(200, json={"return_code": 2, "return_msg": "[1902:종목 정보가 없습니다]"})
    async with broker_for(fake_redis, Script(gone), Clock()) as client:
        with pytest.raises(SkipTarget):
            await client.fetch(INDICES)


async def test_a_wrong_key_stops_everything_and_says_which_variables(fake_redis: Redis):
    def refuse(request: httpx.Request) -> httpx.Response:
        return httpx.Response(
            200, json={"return_code": 3, "return_msg": "[8001:App Key와 Secret Key 검증에 실패했습니다]"}
        )

    async with broker_for(fake_redis, refuse, Clock()) as client:
        with pytest.raises(GiveUp, match="check KIWOOM_APP_KEY and KIWOOM_SECRET_KEY") as error:
            await client.sign_in()

    assert error.value.scope == "key"


async def test_a_poller_whose_lease_has_ended_sends_nothing(fake_redis: Redis):
    script = Script()
    async with broker_for(fake_redis, script, Clock()) as client:
        client.may_send = lambda: False
        with pytest.raises(TryLater, match="nothing is asked"):
            await client.fetch(INDICES)

    assert (script.requests, script.tokens) == ([], 0)
