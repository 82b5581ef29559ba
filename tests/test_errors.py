"""Every code the broker may answer with, and what its catcher has to do about it."""

from __future__ import annotations

import pytest

from poller.errors import BrokerError, GiveUp, SignInAgain, SkipTarget, TryLater, fine_code, raise_for_answer

OK = "정상적으로 처리되었습니다"

FATAL_FOR_THE_REQUEST = [1501, 1511, 1512, 1513, 1514, 1515, 1516, 1517, 1634, 1687]
FATAL_FOR_THE_TR = [1504, 1505, 8104, 8200]
FATAL_FOR_THE_KEY = [8001, 8002, 8011, 8012, 8015, 8016, 8020, 8030, 8040, 8050]
RETRY = [1700, 1701, 1702, 1999, 8006, 8009]
NEW_TOKEN = [8003, 8005]
NEW_TOKEN_ONCE = [8010, 8031, 8103]
SKIP = [1901, 1902, 1903]

CLASSES: list[tuple[int, type[BrokerError]]] = [
    *((code, GiveUp) for code in FATAL_FOR_THE_REQUEST + FATAL_FOR_THE_TR + FATAL_FOR_THE_KEY),
    *((code, TryLater) for code in RETRY),
    *((code, SignInAgain) for code in NEW_TOKEN + NEW_TOKEN_ONCE),
    *((code, SkipTarget) for code in SKIP),
]


def refusal(
    status: int = 200, return_code: object = 7, return_msg: object = "", *, body: dict[str, object] | None = None
) -> BrokerError:
    """The error an answer leads to."""
    content = {"return_code": return_code, "return_msg": return_msg} if body is None else body
    with pytest.raises(BrokerError) as raised:
        raise_for_answer(status, content, asked="ka20003?inds_cd=001")
    return raised.value


@pytest.mark.parametrize("code", [0, "0", "0000", " 0 ", "00"])
def test_zero_is_success_however_it_is_written(code: object):
    raise_for_answer(200, {"return_code": code, "return_msg": OK}, asked="ka20003")


def test_a_success_may_carry_a_number_in_brackets():
    raise_for_answer(200, {"return_code": 0, "return_msg": "[1700:] 정상"}, asked="ka20003")


@pytest.mark.parametrize(("code", "kind"), CLASSES)
@pytest.mark.parametrize("return_code", [3, "5", "20", "message"])
def test_the_number_in_brackets_decides(code: int, kind: type[BrokerError], return_code: object):
    """`return_code` 5 means both "slow down" (1700) and "never" (1634)."""
    error = refusal(200, return_code, f"오류가 발생했습니다 [{code}:안내 문구]")

    assert type(error) is kind
    assert error.code == code


@pytest.mark.parametrize(("code", "kind"), CLASSES)
@pytest.mark.parametrize("spell", [int, str], ids=["number", "text"])
def test_without_brackets_the_return_code_decides(code: int, kind: type[BrokerError], spell: type):
    """`8005` was seen as a string where `return_code` 3 was usual."""
    error = refusal(200, spell(code), "Token이 유효하지 않습니다")

    assert type(error) is kind
    assert error.code == code


@pytest.mark.parametrize(
    ("codes", "scope"), [(FATAL_FOR_THE_REQUEST, "target"), (FATAL_FOR_THE_TR, "tr"), (FATAL_FOR_THE_KEY, "key")]
)
def test_giving_up_says_for_whom(codes: list[int], scope: str):
    for code in codes:
        error = refusal(return_msg=f"[{code}:]")
        assert isinstance(error, GiveUp)
        assert error.scope == scope, code


@pytest.mark.parametrize(("codes", "fatal_twice"), [(NEW_TOKEN, False), (NEW_TOKEN_ONCE, True)])
def test_some_tokens_are_worth_renewing_only_once(codes: list[int], *, fatal_twice: bool):
    for code in codes:
        error = refusal(return_msg=f"[{code}:]")
        assert isinstance(error, SignInAgain)
        assert error.fatal_twice is fatal_twice, code


@pytest.mark.parametrize(("code", "wait_s"), [(1700, 1.3), (1701, 5.0), (1702, 5.0)])
@pytest.mark.parametrize("status", [200, 429])
def test_a_quota_refusal_is_waited_for_and_counted_on_either_status(code: int, wait_s: float, status: int):
    error = refusal(status, 5, f"[{code}:유량=5, API ID=ka20003]")

    assert isinstance(error, TryLater)
    assert error.wait_s >= wait_s
    assert error.refused


def test_the_caps_over_all_requests_are_waited_for_longer():
    per_tr, total = refusal(return_msg="[1700:]"), refusal(return_msg="[1701:]")

    assert isinstance(per_tr, TryLater)
    assert isinstance(total, TryLater)
    assert total.wait_s > per_tr.wait_s


@pytest.mark.parametrize("body", [None, {}, {"error": "Too Many Requests"}], ids=["html", "empty", "other"])
def test_a_429_without_our_envelope_is_a_refusal_too(body: dict[str, object] | None):
    with pytest.raises(TryLater) as raised:
        raise_for_answer(429, body, asked="ka20003")

    assert (raised.value.wait_s, raised.value.refused) == (1.3, True)


@pytest.mark.parametrize("body", [None, {}, {"token": "x"}], ids=["html", "empty", "other"])
def test_a_200_that_is_not_our_json_is_trouble_and_never_an_empty_result(body: dict[str, object] | None):
    """During maintenance a page of HTML comes with HTTP 200."""
    with pytest.raises(TryLater, match="maintenance") as raised:
        raise_for_answer(200, body, asked="ka20003?inds_cd=001")

    assert not raised.value.refused
    assert str(raised.value).startswith("ka20003?inds_cd=001: ")


@pytest.mark.parametrize("status", [500, 502, 503, 504, 302, 404])
def test_trouble_of_the_server_passes(status: int):
    with pytest.raises(TryLater, match=f"HTTP {status}"):
        raise_for_answer(status, None, asked="ka20003")


@pytest.mark.parametrize("status", [500, 503, 404])
def test_a_success_on_a_failing_status_is_no_success(status: int):
    assert type(refusal(status, 0, OK)) is TryLater


def test_a_401_asks_for_a_new_token_with_or_without_a_body():
    with pytest.raises(SignInAgain, match="HTTP 401"):
        raise_for_answer(401, None, asked="ka20003")
    assert type(refusal(401, 3, "인증에 실패했습니다")) is SignInAgain
    assert type(refusal(401, 0, OK)) is SignInAgain


@pytest.mark.parametrize("code", [8001, 8030, 8050])
def test_a_401_that_names_a_fatal_reason_is_fatal(code: int):
    """A new token would not help, and issuing one every time would be a loop."""
    assert type(refusal(401, 3, f"[{code}:]")) is GiveUp


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(8001, "KIWOOM_SECRET_KEY"), (8030, "environment"), (8050, "portal"), (8020, "set both"), (8010, "one address")],
)
def test_what_a_person_can_mend_comes_with_the_remedy(code: int, remedy: str):
    assert remedy in str(refusal(return_msg=f"[{code}:]"))


def test_the_message_is_one_line_and_names_the_call():
    error = refusal(200, 2, "입력 값 오류입니다\n[1517:입력 값 형식이 올바르지 않습니다\t파라미터=inds_cd]")

    assert str(error) == (
        "ka20003?inds_cd=001: 입력 값 오류입니다 [1517:입력 값 형식이 올바르지 않습니다 파라미터=inds_cd] "
        "(HTTP 200, code 1517)"
    )


@pytest.mark.parametrize(
    ("return_code", "message", "code"),
    [
        (3, "[8005:Token이 유효하지 않습니다]", 8005),
        ("8005", "", 8005),
        (5, "[1634]", 1634),
        (0, "[1700:]", 0),
        (2, "[12345:] [17:]", 2),
        (None, "", -1),
        ("", "", -1),
        ("E", "[1999:]", 1999),
    ],
)
def test_the_fine_code_is_the_bracketed_one_if_there_is_one(return_code: object, message: str, code: int):
    assert fine_code(return_code, message) == code


@pytest.mark.parametrize("message", [None, "", 5])
def test_a_missing_message_is_no_accident(message: object):
    assert refusal(200, 1999, message).code == 1999


@pytest.mark.parametrize(("status", "code"), [(429, 1634), (500, 1517), (401, 1504), (503, 8050)])
def test_a_known_code_outweighs_the_status(status: int, code: int):
    """1634 comes with the `return_code` of a quota refusal and is permanent: asked again for ever it never passes."""
    with pytest.raises(GiveUp):
        raise_for_answer(status, {"return_code": 5, "return_msg": f"[{code}:x]"}, asked="x")


@pytest.mark.parametrize("return_code", [None, "", "?", 20, "20"])
def test_an_answer_without_a_known_code_is_not_final(return_code: object):
    """One odd answer must not stop a target for good; 20 says that there is no data now."""
    with pytest.raises(TryLater):
        raise_for_answer(200, {"return_code": return_code, "return_msg": "조회할 자료가 없습니다"}, asked="x")
