"""An endpoint is refused with the remedy before it is needed, and nothing that is printed opens a door."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from standardwebhooks import Webhook

from consumers.alert.endpoints import Endpoint, EndpointError, EndpointSettings, compile_endpoints
from consumers.alert.formats import DISCORD_CHARS, FIRING, RESOLVED, Decision, read, render
from consumers.alert.sign import headers, key_of
from poller.contract import dumps, loads

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes ...").decode()
TOKEN_URL = "https://api.telegram.org/bot123456:verysecret/sendMessage"
ENVIRON = {"DESK_SECRET": SECRET, "BOT_URL": TOKEN_URL, "SHORT": "whsec_c2hvcnQ=", "EMPTY": " "}


def compiled(**given: Any) -> Endpoint:
    section = {"name": "desk", "url": "https://example.com/hook", "secret_env": "DESK_SECRET", **given}
    (endpoint,) = compile_endpoints([EndpointSettings(**{k: v for k, v in section.items() if v is not ...})], ENVIRON)
    return endpoint


def decision(text: str = "▼ 종합(KOSPI) 등락률 -2.31 % (기준 -2 %)", type_: str = FIRING) -> Decision:
    data = {"rule": "kospi-falls", "title": "코스피 급락", "tr": "ka20003", "key": "001", "text": text}
    return read({"id": "d#1", "type": type_, "time": "2026-11-23T09:00:01.123+09:00", "data": dumps(data)})


def test_an_endpoint_is_what_its_section_says():
    endpoint = compiled(expires_after="2h", allow_networks=["10.0.0.0/8"])

    assert (endpoint.host, endpoint.expires_after_s, endpoint.rate) == ("example.com", 7200, 5)
    assert endpoint.key == key_of(SECRET)


@pytest.mark.parametrize("kind", ["slack", "telegram"])
def test_a_chat_is_written_to_once_a_second_unless_told_otherwise(kind: str):
    assert compiled(format=kind, chat_id=1, secret_env=...).rate == 1
    assert compiled(format=kind, chat_id=1, rate=3).rate == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"url": ...}, "url_env"),
        ({"url_env": "BOT_URL"}, "either url, or url_env"),
        ({"url": ..., "url_env": "NOWHERE"}, "NOWHERE, which is not set"),
        ({"url": "http://example.com/hook"}, "allow_http"),
        ({"url": "ftp://example.com/hook"}, "https://HOST/PATH"),
        ({"url": "https:///hook"}, "https://HOST/PATH"),
        ({"url": "https://example.com:banana/hook"}, "https://HOST/PATH"),
        ({"url": "https://me:hunter2@example.com/hook"}, "user name"),
        ({"secret_env": ...}, "secret_env is missing"),
        ({"secret_env": "EMPTY"}, "EMPTY, which is not set"),
        ({"secret_env": "whsec_c2hvcnQ="}, "is not the name of an environment variable"),
        ({"url": ..., "url_env": "https://example.com/hook"}, "is not the name of an environment variable"),
        ({"secret_env": "SHORT"}, "24 to 64 bytes"),
        ({"secret_env": "BOT_URL"}, "does not begin with whsec_"),
        ({"format": "telegram"}, "chat_id"),
    ],
)
def test_what_cannot_work_is_refused_with_endpoint_thing_and_remedy(given: dict[str, Any], words: str):
    with pytest.raises(EndpointError, match=r"^endpoint desk: ") as refused:
        compiled(**given)

    message = str(refused.value)
    assert words in message
    assert "\n" not in message
    assert not [secret for secret in ("hunter2", "verysecret", "c2hvcnQ", "/hook") if secret in message]


def test_two_endpoints_of_one_name_are_refused():
    section = EndpointSettings.model_validate(
        {"name": "desk", "url": "https://example.com", "secret_env": "DESK_SECRET"}
    )
    with pytest.raises(EndpointError, match="used twice"):
        compile_endpoints([section, section], ENVIRON)


@pytest.mark.parametrize("wrong", [{"urls": "x"}, {"expires_after": "soon"}, {"name": "a:b"}, {"rate": 0}])
def test_a_section_that_is_wrong_by_itself_does_not_repeat_what_it_holds(wrong: dict[str, Any]):
    with pytest.raises(ValidationError) as refused:
        EndpointSettings.model_validate({"name": "desk", "url": TOKEN_URL, **wrong})

    assert next(iter(wrong)) in str(refused.value)
    assert "verysecret" not in str(refused.value)


def test_neither_settings_nor_endpoint_show_a_secret():
    endpoint = compiled(url=..., url_env="BOT_URL", format="telegram", chat_id=42)
    shown = repr(endpoint) + repr(EndpointSettings.model_validate({"name": "desk", "url": TOKEN_URL}))

    assert "verysecret" not in shown
    assert SECRET not in shown
    assert repr(key_of(SECRET)) not in shown
    assert endpoint.host == "api.telegram.org"


# --- bodies


def test_the_standard_body_is_type_time_and_data_without_our_routing():
    fields = {"id": "d#1", "type": FIRING, "time": "2026-11-23T09:00:01.123+09:00"}
    given = read({**fields, "data": '{"rule":"r","value":-2.31,"notify":["desk","phone"]}'})

    assert given.notify == ("desk", "phone")
    assert render(given, compiled()) == (
        '{"type":"sectorwire.alert.firing","timestamp":"2026-11-23T09:00:01.123+09:00",'
        '"data":{"rule":"r","value":-2.31}}'
    )


def test_each_chat_reads_its_own_shape():
    """A sector's name may hold what Slack takes for marks of its own."""
    text = "음식료/담배 <b> & co"
    telegram = loads(render(decision(text), compiled(format="telegram", chat_id=-100)))
    slack = loads(render(decision(text), compiled(format="slack")))
    discord = loads(render(decision(text), compiled(format="discord")))

    assert (telegram["chat_id"], telegram["text"]) == (-100, "코스피 급락\n음식료/담배 <b> & co")
    assert slack == {"text": "코스피 급락\n음식료/담배 &lt;b&gt; &amp; co"}
    assert discord == {"content": "코스피 급락\n음식료/담배 <b> & co", "allowed_mentions": {"parse": []}}


def test_a_chat_is_told_that_it_is_over():
    assert loads(render(decision("", RESOLVED), compiled(format="slack"))) == {"text": "코스피 급락 · 해제"}


def test_a_text_is_cut_to_what_the_chat_takes():
    content = loads(render(decision("가" * 5000 + "🔔"), compiled(format="discord")))["content"]

    assert (len(content), content[-1]) == (DISCORD_CHARS, "…")


@pytest.mark.parametrize(
    "fields", [{}, {"data": "{}"}, {"data": "[]", "id": "1", "type": "t", "time": "t"}, {"data": "{"}]
)
def test_what_is_no_decision_is_not_taken_for_one(fields: dict[str, str]):
    with pytest.raises(ValueError, match=r"."):
        read(fields)


def test_decisions_on_one_alert_share_a_lane_and_no_others_do():
    one, over = decision(), decision("over", RESOLVED)
    other = read({"id": "x", "type": FIRING, "time": "t", "data": '{"rule":"kospi-falls","tr":"ka20003","key":"101"}'})

    assert one.lane == over.lane != other.lane


# --- signatures

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(body=TEXTS, id_=TEXTS)
def test_every_signature_is_accepted_by_the_package_that_receivers_use(body: str, id_: str):
    now = datetime.now(UTC)
    body = dumps({"text": body})
    sent = headers(key_of(SECRET), id_, int(now.timestamp()), body.encode())

    assert all(value.isascii() and value.isprintable() for value in sent.values())
    assert Webhook(SECRET).verify(body, sent) == loads(body)


def test_an_altered_body_or_an_old_time_is_not_accepted():
    now_s = int(datetime.now(UTC).timestamp())
    old_s = now_s - int(timedelta(minutes=10).total_seconds())
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(SECRET).verify('{"a":2}', headers(key_of(SECRET), "d#1", now_s, b'{"a":1}'))
    with pytest.raises(Exception, match="too old"):
        Webhook(SECRET).verify('{"a":1}', headers(key_of(SECRET), "d#1", old_s, b'{"a":1}'))
