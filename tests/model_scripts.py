"""The keys and arguments of a script go in; what it does to a model server, and its answer, come out.

Each is written beside its Lua, which is the one that counts: in poller/, consumers/, consumers/alert/, auth.py and
turnstile.py. They use the server's own commands in the order of the Lua, so that a server which refuses writes stops
them where it would stop that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from consumers import group as consumers_group
from poller.auth import LET_GO, SWAP
from poller.store import SCRIPTS as POLLERS
from poller.turnstile import LEAVE
from tests.model_groups import MAX_NUMBER, Stream, parsed, shown
from tests.model_sorted import first_of_lane, zadd, zrem, zrem_below, zscore

if TYPE_CHECKING:
    from tests.model_server import ModelServer

Texts = list[str]
Script = Callable[["ModelServer", Texts, Texts], Any]
CONSUMERS = Path(consumers_group.__file__).parent


# --- poller/


def commit(server: ModelServer, keys: Texts, argv: Texts) -> tuple[str, int]:
    """One poll: check everything, then write rows, entries, seq and state."""
    meta, changes, snapshot, state = keys
    fence, epoch, before, after, commit_id, id_prefix, source, time, clear = argv[:9]
    for place, (key, wanted) in enumerate(zip(keys, (dict, Stream, dict, dict), strict=True), 1):
        if not server.is_or_may_be(key, wanted):
            return "type", place
    reign, stored = server.hash(meta), server.hash(state)
    if (reign.get("fence"), reign.get("epoch")) != (fence, epoch):
        return "fenced", 0
    if server.run_id and reign.get("server") != server.run_id:
        return "restarted", 0
    seq, version = int(reign.get("seq", "0")), stored.get("version", "0")
    if version != before:
        if version == after and stored.get("commit") == commit_id:
            return "again", seq
        return "stale", int(version)

    new_state, rows, gone, drafts = _lists(argv[9:])
    if clear == "1":
        server.delete(snapshot)
    if gone:
        server.hdel(snapshot, *gone)
    _hset(server, snapshot, rows)
    common = {"specversion": "1.0", "source": source, "time": time, "datacontenttype": "application/json"}
    number = 0
    for kind, subject, data in zip(drafts[::3], drafts[1::3], drafts[2::3], strict=True):
        number += 1
        entry = {"id": f"{id_prefix}{number}", "type": kind, "subject": subject, "seq": str(seq + number)}
        server.add(changes, {**common, **entry, "data": data})
    if number:
        server.hset(meta, mapping={"seq": str(seq + number)})
        server.hset(state, mapping={"commit": commit_id})
    _hset(server, state, new_state)
    server.committed(source, int(before), int(after), time)
    return "ok", seq + number


def note(server: ModelServer, keys: Texts, argv: Texts) -> int:
    """Write down an attempt that brought no answer, if its poller still leads."""
    meta, state = keys
    if server.hash(meta).get("fence") != argv[0]:
        return 0
    _hset(server, state, argv[1:])
    return 1


def reign(server: ModelServer, keys: Texts, argv: Texts) -> tuple[str, str]:
    """Put a leader's fence into one TR, and begin an epoch no entry has ever carried."""
    (meta,), (token, nonce, now_ms, revision) = keys, argv
    if not server.is_or_may_be(meta, dict):
        return "type", "0"
    stored, mine = server.hash(meta), f"{token}:{nonce}"
    if int(stored.get("revision", "0")) > int(revision):
        return "newer", stored["revision"]
    stored_token = int(stored.get("fence", "0").partition(":")[0])
    if stored_token > int(token) or (stored_token == int(token) and stored.get("fence") != mine):
        return "fenced", stored.get("epoch", "0")
    epoch = str(max(int(now_ms), int(stored.get("epoch", "0")) + 1))
    server.hdel(meta, "server")
    server.hset(meta, mapping={"fence": mine, "epoch": epoch, "revision": revision, "server": server.run_id})
    return "ok", epoch


def lease(server: ModelServer, keys: Texts, argv: Texts) -> tuple[str, int, int]:
    """Take, keep or let go the lead: only the holder named by `takes_from` (or nobody) is followed."""
    (leader,), (mine, life_ms, takes_from), full = keys, argv, 0
    holder = server.get(leader)
    if holder is not None and holder not in (mine, takes_from):
        return holder, server.pttl(leader), 0
    if life_ms == "0":
        server.delete(leader)
        return mine, 0, 0
    try:
        server.set(leader, mine, px=int(life_ms))
    except ResponseError:
        full = 1
        server.delete(leader)
        server.set(leader, mine, px=int(life_ms))
    return mine, int(life_ms), full


def trim(server: ModelServer, keys: Texts, argv: Texts) -> tuple[int, int]:
    """Trim one stream: what is older than the retention, but nothing that any group still needs."""
    (stream,), keep_from, share = keys, (int(argv[0]), 0), float(argv[1])
    if stream not in server.keys or not server.is_or_may_be(stream, Stream):
        return 0, 0
    found = server.stream(stream)
    if share < 1 and found.ids:
        (first_ms, first), (last_ms, last) = found.ids[0], found.ids[-1]
        number = round(last - (last - first) * share) if first_ms == last_ms else 0
        keep_from = max(keep_from, (round(last_ms - (last_ms - first_ms) * share), number))
    for group in found.groups.values():
        keep_from = min([keep_from, group.last_delivered, *list(group.pending)[:1]])
    return server.trim_below(stream, keep_from), found.size


def expire(server: ModelServer, keys: Texts, argv: Texts) -> list[list[str | int | None]]:
    """Look after the groups of one stream that nobody reads: note them, and remove those noted long enough ago."""
    (stream, noted), (part, retention, grace, positions, *ours) = keys, argv
    if not server.is_or_may_be(stream, Stream):
        return []
    groups = server.xinfo_groups(stream) if server.exists(stream) else []
    there = {f"{part}/{group['name']}" for group in groups}
    for field in server.hgetall(noted):
        if field.startswith(f"{part}/") and field not in there:
            server.hdel(noted, field)
    now, told = server.now_ms(), list[list[str | int | None]]()
    for group in groups:
        name, field = group["name"], f"{part}/{group['name']}"
        oldest = server.xpending(stream, name)["min"] if group["pending"] else None
        first = server.xrange(stream, oldest or f"({group['last-delivered-id']}", "+", 1)
        needed = oldest or (first[0][0] if first else None)
        silent = min((one["idle"] for one in server.xinfo_consumers(stream, name)), default=float("inf"))
        is_ours = name in ours or server.exists(positions + name)
        late = needed is not None and now - parsed(needed)[0] > int(retention)
        note = server.hash(noted).get(field, "")
        since, _, was = note.partition(" ")
        far = f"{group['last-delivered-id']} {group['pending']}"
        what = ""
        if is_ours or not late or silent <= int(retention):
            what = "returned" if note else ""
            server.hdel(noted, field)
        elif was != far:
            what, since = "noted" if note else "new", str(now)
            server.hdel(noted, field)
            server.hset(noted, mapping={field: f"{now} {far}"})
        elif silent < now - int(since):
            what, since = "noted", str(now - int(silent))
            server.hdel(noted, field)
            server.hset(noted, mapping={field: f"{since} {far}"})
        elif now - int(since) > int(grace):
            what = "removed"
            server.xgroup_destroy(stream, name)
            server.hdel(noted, field)
        else:
            what = "noted"
        if what:
            ends = [first[0] if first else ("", {}), *(server.xrevrange(stream, count=1) or [("", {})])]
            (first_id, start), (last_id, end) = ends
            seqs = start.get("seq", ""), end.get("seq", "")
            told.append([what, name, since or "0", first_id, last_id, *seqs, group["pending"]])
    return told


# --- poller/auth.py, poller/turnstile.py


def let_go(server: ModelServer, keys: Texts, argv: Texts) -> int:
    """Let a lock go, but not one that ran out and is another's."""
    if server.get(keys[0]) != argv[0]:
        return 0
    return server.delete(keys[0])


def swap(server: ModelServer, keys: Texts, argv: Texts) -> int:
    """Store a token in the place of the one that failed, or where there is none."""
    (key,), (failed, token, ends, refused_at, life_s) = keys, argv
    if server.hash(key).get("token", failed) != failed:
        return 0
    server.hset(key, mapping={"token": token, "ends": ends, "refused_at": refused_at})
    server.expire(key, int(life_s) * 1000)
    return 1


def leave(server: ModelServer, keys: Texts, argv: Texts) -> int:
    """Give a slot back in a while, but not one that ran out and is another's."""
    if server.get(keys[0]) != argv[0]:
        return 0
    server.expire(keys[0], int(argv[1]))
    return 1


# --- consumers/


def hold(server: ModelServer, keys: Texts, argv: Texts) -> str:
    """Take, keep or let go the one active place of a group."""
    (active,), (mine, life_ms) = keys, argv
    holder = server.get(active)
    if holder is not None and holder != mine:
        return holder
    if life_ms == "0":
        server.delete(active)
    elif holder is not None:
        server.expire(active, int(life_ms))
    else:
        server.delete(active)
        server.set(active, mine, px=int(life_ms))
    return mine


def park(server: ModelServer, keys: Texts, argv: Texts) -> int:
    """Move one entry out of a group's way: copied with the reason, then acknowledged."""
    (stream, parked, failing), (group, entry_id, reason, stack) = keys, argv
    found = server.xrange(stream, entry_id, entry_id)
    server.hdel(failing, entry_id)
    for _, fields in found:
        why = {"parked_id": entry_id, "parked_by": group, "parked_why": reason, "parked_stack": stack}
        server.add(parked, {**fields, **why})
    server.xack(stream, group, entry_id)
    return len(found)


def forgive(server: ModelServer, keys: Texts, argv: Texts) -> int:
    """Take one hand-out of entries back, where nobody has handed them out since."""
    (stream,), (group, most, *ids), taken = keys, argv, 0
    for entry_id in ids:
        for one in server.xpending_range(stream, group, entry_id, entry_id, 1):
            if one["times_delivered"] <= int(most) + 1:
                count, idle_ms = min(one["times_delivered"], int(most)), one["time_since_delivered"]
                server.xclaim(
                    stream, group, one["consumer"], 0, [entry_id], idle=idle_ms, retrycount=count, justid=True
                )
                taken += 1
    return taken


def done(server: ModelServer, keys: Texts, argv: Texts) -> str | None:
    """Acknowledge what is done, and write down how far the group is: up to there everything is done, whoever had it."""
    (stream, position, failing), (group, count, *texts) = keys, argv
    ids, own = texts[: int(count)], texts[int(count) :]
    for entry_id, name in reversed(list(zip(ids, own, strict=True))):
        if found := server.xrange(stream, entry_id, entry_id):
            if found[0][1].get("id", "") != name:
                raise ResponseError("GONE the server has lost what was read, and another entry stands there")
            break
    server.xack(stream, group, *ids)
    server.hdel(failing, *ids)
    reached = None
    for one in server.xinfo_groups(stream):
        if one["name"] == group:
            reached = one["last-delivered-id"]
            if one["pending"]:
                ms, number = parsed(server.xpending(stream, group)["min"])
                reached = shown((ms, number - 1) if number else (ms - 1, MAX_NUMBER))
    if reached is not None:
        server.set(position, reached)
    return reached


def repark(server: ModelServer, keys: Texts, argv: Texts) -> int:
    """Give a parked entry the reason why it failed again: a new copy in the place of the old one."""
    (parked,), (parked_at, reason, stack) = keys, argv
    found = server.xrange(parked, parked_at, parked_at)
    if not found:
        return 0
    own = {name: text for name, text in found[0][1].items() if name not in {"parked_why", "parked_stack"}}
    server.xdel(parked, parked_at)
    server.add(parked, {"parked_why": reason, "parked_stack": stack, **own})
    return 1


def dismiss(server: ModelServer, keys: Texts, argv: Texts) -> int:
    """Take consumers off a group that are gone and own nothing."""
    (stream,), (group, asking, idle_ms) = keys, argv
    idle = [one for one in server.xinfo_consumers(stream, group) if one["idle"] >= int(idle_ms)]
    gone = [one["name"] for one in idle if one["name"] != asking and not one["pending"]]
    for name in gone:
        server.xgroup_delconsumer(stream, group, name)
    return len(gone)


# --- consumers/alert/


def decide(server: ModelServer, keys: Texts, argv: Texts) -> tuple[str, int]:
    """One batch: write what the rules remember, what they decided and how far they have read."""
    (alerting, alerts, changes), (before, position, tick, entry) = keys, argv[:4]
    if not all(map(server.is_or_may_be, keys, (dict, Stream, Stream))):
        return "type", 0
    version = server.hash(alerting).get("version", "0")
    if version != before:
        return "stale", int(version)
    if tick == "1" and server.exists(changes) and server.xinfo_stream(changes)["last-generated-id"] != position:
        return "behind", int(version)
    if entry and _is_gone(server, changes, position, entry):
        return "gone", int(version)

    remembered, gone, decided = _lists(argv[4:])
    if tick != "1":
        server.hdel(alerting, "")
    for name, text in zip(remembered[::2], remembered[1::2], strict=True):
        server.hset(alerting, mapping={name: text})
    for name in gone:
        server.hdel(alerting, name)
    for first in range(0, len(decided), 6):
        entry_id, source, kind, subject, time, data = decided[first : first + 6]
        seq = str(server.hincrby(alerting, "seq"))
        head = {"specversion": "1.0", "id": entry_id, "source": source, "type": kind, "subject": subject, "time": time}
        server.add(alerts, {**head, "seq": seq, "datacontenttype": "application/json", "data": data})
    server.hset(alerting, mapping={"position": position})
    return "ok", server.hincrby(alerting, "version")


def _is_gone(server: ModelServer, changes: str, position: str, entry: str) -> bool:
    found = server.xrange(changes, position, position)
    if found:
        return found[0][1].get("id") != entry
    if not server.exists(changes):
        return True
    stream, at = server.stream(changes), parsed(position)
    trimmed = not stream.ids or at < stream.ids[0]
    return stream.last < at or not (trimmed or at <= stream.max_deleted)


def enqueue(server: ModelServer, keys: Texts, argv: Texts) -> int:
    """Take one delivery into an endpoint's queue, unless it was taken before."""
    (seen, order, due, jobs, bodies), (decision, lane, place, job, body, now_ms, forget_ms) = keys, argv
    zrem_below(server, seen, int(forget_ms))
    if not zadd(server, seen, now_ms, decision, nx=True):
        return 0
    zadd(server, order, "0", place)
    zadd(server, due, now_ms, lane, nx=True)
    server.hset(jobs, decision, job)
    server.hset(bodies, decision, body)
    return 1


def begin(server: ModelServer, keys: Texts, argv: Texts) -> Sequence[str]:
    """Begin an attempt: the first delivery of a lane that is due becomes ours until it is settled or too late."""
    (active, order, due, jobs, bodies, claims), (mine, lane, now_ms, until_ms, claim, latest_ms) = keys, argv
    if server.get(active) != mine:
        return []
    due_ms = zscore(server, due, lane)
    if due_ms is None or int(now_ms) < int(due_ms) <= int(latest_ms):
        return []
    first = first_of_lane(server, order, lane)
    if first is None:
        zrem(server, due, lane)
        return []
    decision = first.split(":", 2)[2] if first.count(":") > 1 else first
    server.hdel(claims, lane)
    zadd(server, due, until_ms, lane)
    server.hset(claims, lane, claim)
    return [first, server.hget(jobs, decision) or "", server.hget(bodies, decision) or ""]


def settle(server: ModelServer, keys: Texts, argv: Texts) -> tuple[int, int]:
    """Write down how an attempt ended, if it is still ours."""
    order, due, jobs, bodies, claims, dead, state = keys
    lane, claim, place, decision, what, now_ms, due_ms, job, why, kept, *fields = argv
    if server.hget(claims, lane) != claim:
        return 0, 0
    dropped = 0
    server.hdel(claims, lane)
    _hset(server, state, fields)
    if what == "again":
        server.hset(jobs, decision, job)
        zadd(server, due, due_ms, lane)
        return 1, 0
    if what == "dead":
        body = server.hget(bodies, decision) or ""
        head = {"id": decision, "lane": lane, "place": place, "why": why, "at": now_ms}
        server.add(dead, {**head, "job": job, "body": body})
        dropped = server.trim_to(dead, int(kept))
        if dropped > 0:
            server.hincrby(state, "dropped", dropped)
    server.hincrby(state, what)
    zrem(server, order, place)
    server.hdel(jobs, decision)
    server.hdel(bodies, decision)
    if first_of_lane(server, order, lane):
        zadd(server, due, now_ms, lane)
    else:
        zrem(server, due, lane)
    return 1, dropped


def redrive(server: ModelServer, keys: Texts, argv: Texts) -> int:
    """Put one dead letter back into its endpoint's queue, at its old place in the order."""
    (dead, order, due, jobs, bodies), (letter, decision, lane, place, job, body, now_ms) = keys, argv
    if not server.xdel(dead, letter):
        return 0
    zadd(server, order, "0", place)
    zadd(server, due, now_ms, lane, nx=True)
    server.hset(jobs, decision, job)
    server.hset(bodies, decision, body)
    return 1


def _lists(texts: Texts) -> list[Texts]:
    """Lists one after the other, each led by its length."""
    lists = []
    while texts:
        size = int(texts[0])
        lists.append(texts[1 : size + 1])
        texts = texts[size + 1 :]
    return lists


def _hset(server: ModelServer, key: str, texts: Texts) -> None:
    """HSET of fields and values in turn; nothing to set is no command."""
    if texts:
        server.hset(key, mapping=dict(zip(texts[::2], texts[1::2], strict=True)))


def _of(folder: Path, *scripts: Script) -> dict[str, Script]:
    return {(folder / f"{script.__name__}.lua").read_text("utf-8"): script for script in scripts}


BY_TEXT: dict[str, Script] = {
    **_of(POLLERS, commit, note, reign, lease, trim, expire),
    **_of(CONSUMERS, hold, done, park, forgive, repark, dismiss),
    **_of(CONSUMERS / "alert", decide, enqueue, begin, settle, redrive),
    LET_GO: let_go,
    SWAP: swap,
    LEAVE: leave,
}
"""A script is known by its text, so that one that was edited is not taken for the old one."""
