"""What a poller left behind goes in; an AssertionError with the evidence comes out, or a count of what was checked.

Independent on purpose: it shares no code with the product. It knows a plain Redis client, the names of keys and the
form of entries as the contract describes them, what `sectorwire catalogue --json` and `sectorwire schema` print, and
the simulator's ledger. The number rules below are a second reading of the same vocabulary.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import cache
from pathlib import Path
from typing import Any

import redis
from jsonschema import Draft202012Validator
from redis.backoff import NoBackoff
from redis.retry import Retry

SCHEMA_SAMPLES = 500
ID = re.compile(r"(?P<target>ka\d{5}\?[^#]+)#(?P<epoch>\d+)\.(?P<version>\d+)\.(?P<number>\d+)")
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+09:00")
CANONICAL_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d*[1-9])?")

Json = Any  # what json.loads makes of a text, with every number a Number
Row = dict[str, Json]
Tables = dict[str, Row]


# --- numbers and JSON, as the contract writes them -----------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """A JSON number as it is written, so that 90.3 and 90.30 differ, and so do 5 and "5"."""

    text: str


def number(text: str) -> Number:
    """A number of the stream, in canonical form or not at all."""
    assert CANONICAL_NUMBER.fullmatch(text), f"{text} is not a plain decimal without trailing zeros"
    assert text != "-0", "a negative zero was written"
    digits = text.lstrip("-").replace(".", "").strip("0")
    assert len(digits) <= 15, f"{text} has more digits than a double holds"
    return Number(text)


DECODER = json.JSONDecoder(parse_int=number, parse_float=number)


def written(value: Json) -> str:
    """Canonical JSON: compact, Korean as it is, keys in their order."""
    if isinstance(value, Number):
        return value.text
    if isinstance(value, dict):
        return "{" + ",".join(f"{written(name)}:{written(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def literal_after(data: str) -> str:
    """The text of `after` as it stands in an entry's data; no field of a row may be called that."""
    start = data.index('"after":') + len('"after":')
    return data[start : DECODER.raw_decode(data, start)[1]]


# --- what the product says of itself -------------------------------------------------------------------------------


def _printed(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "sectorwire", *command], capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout


@cache
def catalogue() -> dict[str, Any]:
    """`sectorwire catalogue --json`, by TR."""
    return {tr["tr"]: tr for tr in json.loads(_printed("catalogue", "--json"), parse_float=Decimal)}


@cache
def schema() -> dict[str, Any]:
    """`sectorwire schema`."""
    document: dict[str, Any] = json.loads(_printed("schema"))
    return document


@cache
def validator(tr: str, message: str, part: str) -> Draft202012Validator:
    """What checks the headers or the payload of one message of a TR's stream."""
    return Draft202012Validator({**schema(), "$ref": f"#/channels/{tr}/messages/{message}/{part}"})


def table_of(tr: str, name: str) -> dict[str, Any]:
    """One table of a TR, as the catalogue has it."""
    tables: dict[str, dict[str, Any]] = {table["table"]: table for table in catalogue()[tr]["tables"]}
    return tables[name]


# --- the broker's text, read a second time -------------------------------------------------------------------------


def decimal_of(text: str) -> Decimal:
    """The number in a broker's text; of two signs the document knows only `--`, which is a minus."""
    plain = text.replace(",", "")
    return Decimal("-" + plain[2:]) if plain.startswith("--") else Decimal(plain)


def plain_number(value: Decimal) -> Number:
    """A number in canonical form."""
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return Number("0" if text in {"-0", ""} else text)


DIRECTIONS = {"0": None, "1": "limit_up", "2": "up", "3": "flat", "4": "limit_down", "5": "down"}
MARKERS = {"888888", "999999"}


def code_of(text: str) -> str:
    """A code without the suffix that tells the exchange."""
    return text.strip().removesuffix("_AL").removesuffix("_NX")


def value_of(kind: str, scale: int | Decimal | None, raw: str | None) -> Json:
    """One element under our rules: empty is null for every kind."""
    text = (raw or "").strip()
    if not text:
        return None
    match kind:
        case "code":
            return code_of(text)
        case "text":
            return text
        case "direction":
            return DIRECTIONS[text]
        case "date":
            return date(int(text[:4]), int(text[4:6]), int(text[6:])).isoformat()
        case "time":
            return None if text in MARKERS else time(int(text[:2]), int(text[2:4]), int(text[4:])).isoformat()
        case "level":
            level = abs(decimal_of(text)) * (scale or 1)
            return plain_number(level) if level else None
        case "change" | "percent" | "amount" | "quantity" | "count":
            return plain_number(decimal_of(text) * (scale or 1))
    raise AssertionError(f"the vocabulary has no kind {kind}")


def total_of_foreigners(row: Row, name: str) -> Json:
    """Foreigners and residents treated as such, in the unit that the field's name ends with."""
    unit = name.rpartition("_")[2]
    parts = [row[f"{group}_net_{unit}"] for group in ("foreigner", "resident_foreigner")]
    return None if None in parts else plain_number(sum((Decimal(part.text) for part in parts), Decimal(0)))


def share_of_advancers(row: Row, name: str) -> Json:
    """Advancers in percent of the stocks that moved, two decimals, half even."""
    up, down = row["advancers"], row["decliners"]
    if up is None or down is None or Decimal(up.text) + Decimal(down.text) == 0:
        return None
    exact = Context(prec=50).divide(100 * Decimal(up.text), Decimal(up.text) + Decimal(down.text))
    return plain_number(exact.quantize(Decimal("0.01"), ROUND_HALF_EVEN))


FORMULAS = {
    "foreigner + resident_foreigner": total_of_foreigners,
    "advancers ÷ (advancers + decliners) × 100": share_of_advancers,
}


def row_of(table: Mapping[str, Any], line: Mapping[str, Any], request: Mapping[str, str]) -> Row:
    """One line of an answer under our names, variants as the request says, unknown elements last."""
    row: Row = {}
    for declared in table["fields"]:
        asked = {**declared}
        for variant in declared["variants"]:
            if all(request.get(name) == value for name, value in variant["when"].items()):
                asked |= variant
        if asked["element"] is None:
            row[asked["field"]] = FORMULAS[asked["derived"]](row, asked["field"])
        else:
            row[asked["field"]] = value_of(asked["kind"], asked["scale"], line.get(asked["element"]))
    known = {declared["element"] for declared in table["fields"]}
    extra = {name: str(value) for name, value in sorted(line.items()) if name not in known}
    return {**row, "extra": extra} if extra else row


def lines_of(table: Mapping[str, Any], pages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The lines of one table in a whole walk, each with its key."""
    if table["mode"] == "document":
        yield (
            "-",
            {
                name: value
                for name, value in pages[0].items()
                if not isinstance(value, list) and name not in {"return_code", "return_msg"}
            },
        )
        return
    key = next(declared for declared in table["fields"] if declared["field"] == table["key"][0])
    for line in (line for page in pages for line in page[table["element"]]):
        raw = str(line[key["element"]]).strip()
        yield (code_of(raw) if key["kind"] == "code" else raw), line


# --- the stream ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One entry of a stream, its id taken apart."""

    fields: Mapping[str, str]
    target: str
    epoch: int
    version: int
    number: int
    data: Json

    @property
    def type(self) -> str:
        """What happened, such as `row.changed` or `reset`."""
        return self.fields["type"].removeprefix("sectorwire.")

    @property
    def subject(self) -> str:
        """Where it happened: `table/key`."""
        return self.fields["subject"]

    @property
    def observed_at(self) -> datetime:
        """When the answer was complete."""
        return datetime.fromisoformat(self.fields["time"])


def connect(url: str) -> Any:  # redis-py's types promise awaitables where there are none
    """A plain client, which repeats nothing by itself."""
    return redis.Redis.from_url(url, decode_responses=True, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=10)


def read_entries(server: Any, prefix: str, tr: str) -> list[Entry]:
    """The whole stream of a TR."""
    return [_entry(fields) for _, fields in server.xrange(f"{prefix}:{{{tr}}}:changes")]


def _entry(fields: Mapping[str, str]) -> Entry:
    found = ID.fullmatch(fields["id"])
    assert found, f"{fields['id']} is not an id of the form target#epoch.version.number"
    data = DECODER.decode(fields["data"])
    return Entry(fields, found["target"], int(found["epoch"]), int(found["version"]), int(found["number"]), data)


def check_order(entries: Sequence[Entry], tr: str) -> None:
    """`seq` without a hole, no id twice, commits whole and in order."""
    seqs = [int(entry.fields["seq"]) for entry in entries]
    assert seqs == list(range(1, len(seqs) + 1)), f"{tr}: seq has a hole or a repeat at {_first_break(seqs)}"
    seen = Counter(entry.fields["id"] for entry in entries)
    assert len(seen) == len(entries), f"{tr}: ids that occur twice: {[one for one, n in seen.items() if n > 1][:3]}"
    commits: dict[str, tuple[int, int]] = {}
    previous: Entry | None = None
    for entry in entries:
        place, of_target = (entry.epoch, entry.version), commits.get(entry.target, (0, 0))
        same_commit = previous is not None and previous.target == entry.target and place == of_target
        if same_commit:
            assert previous
            expected = previous.number + 1
        else:
            assert place > of_target, f"{entry.fields['id']} comes after {of_target} of the same target"
            assert entry.version == of_target[1] + 1, f"{entry.fields['id']} skips a version after {of_target}"
            expected = 1
        assert entry.number == expected, f"{entry.fields['id']}: number {expected} of that commit is missing"
        commits[entry.target], previous = place, entry
        _check_attributes(entry, tr)


def _first_break(seqs: Sequence[int]) -> str:
    place = next(place for place, seq in enumerate(seqs) if seq != place + 1)
    return f"entry {place + 1}: {seqs[max(0, place - 2) : place + 3]}"


def _check_attributes(entry: Entry, tr: str) -> None:
    """What stands in an entry more than once says the same everywhere."""
    data, told = entry.data, entry.fields
    query = "&".join(f"{name}={value}" for name, value in sorted(data["target"].items()))
    assert entry.target == f"{tr}?{query}" == f"{data['tr']}?{query}", f"{told['id']} names another target than data"
    assert told["source"] == f"/kiwoom/{entry.target}", f"{told['id']} has the source {told['source']}"
    assert (told["specversion"], told["datacontenttype"]) == ("1.0", "application/json"), told["id"]
    assert (data["epoch"].text, data["version"].text) == (str(entry.epoch), str(entry.version)), told["id"]
    assert MOMENT.fullmatch(told["time"]), f"{told['id']}: {told['time']}"
    assert data["observed_at"] == told["time"], f"{told['id']}: time and observed_at differ"
    if entry.type.startswith("row."):
        assert entry.subject == f"{data['table']}/{data['key']}", f"{told['id']} has the subject {entry.subject}"


def fold(entries: Iterable[Entry], targets: dict[str, dict[str, str]] | None = None) -> dict[str, dict[str, str]]:
    """Replay a stream over `type` and `data`: target, then `table/key`, then the text of the row.

    What each entry says of the row before it has to be what the entries before it said; `targets` is what those came
    to, and goes on from there.
    """
    targets = {} if targets is None else targets
    for entry in entries:
        rows = targets.setdefault(entry.target, {})
        where, kind = f"{entry.fields['id']} {entry.subject}", entry.type.removeprefix("row.")
        if kind == "reset":
            rows.clear()
        if not entry.type.startswith("row."):
            continue
        old = DECODER.decode(rows[entry.subject]) if entry.subject in rows else None
        before, after, changed = entry.data["before"], entry.data["after"], entry.data["changed"]
        if kind in {"baseline", "added", "appended"}:
            assert old is None, f"{where} is {kind}, but was there"
            assert before is None, f"{where} is {kind}, and yet has a before"
            assert changed == [], f"{where} is {kind}, and yet names changed fields"
        elif kind == "changed":
            assert old is not None, f"{where} changed, but was not there"
            differing = [name for name in after if name != "extra" and old.get(name) != after[name]]
            assert changed == differing != [], f"{where} names {changed}, but {differing} differ"
            assert before == {name: old.get(name) for name in changed}, f"{where}: before is not what was there"
        else:
            assert kind == "removed", f"{where} has the unknown type {entry.type}"
            assert old == before, f"{where}: what was removed is not what was there"
            assert after is None, f"{where} was removed, and yet has an after"
        if after is None:
            del rows[entry.subject]
        else:
            rows[entry.subject] = literal_after(entry.fields["data"])
            _forget(rows, entry)
    return targets


def _forget(rows: dict[str, str], entry: Entry) -> None:
    """Drop what slid out of an append table's window."""
    window = table_of(entry.data["tr"], entry.data["table"])["window"]
    if window is not None:
        mine = sorted(name for name in rows if name.startswith(f"{entry.data['table']}/"))
        for name in mine[:-window]:
            del rows[name]


def check_schema(entries: Sequence[Entry], tr: str) -> int:
    """Validate entries against the published schema, spread over the stream; how many."""
    step = max(1, len(entries) * len(catalogue()) // SCHEMA_SAMPLES)
    for entry in entries[::step]:
        data = json.loads(entry.fields["data"])
        kind = entry.type.removeprefix("row.")
        message = f"{data['table']}.{kind}" if entry.type.startswith("row.") else kind
        headers = {**entry.fields, "seq": int(entry.fields["seq"]), "data": data}
        validator(tr, message, "headers").validate(headers)
        validator(tr, message, "payload").validate(data)
    return len(entries[::step])


# --- the ledger ----------------------------------------------------------------------------------------------------


@dataclass
class Walk:
    """The pages of one poll, as they were served."""

    target: str
    request: Mapping[str, str]
    began: datetime
    pages: list[Mapping[str, Any]] = field(default_factory=list)
    next_key: str = ""

    @property
    def tables(self) -> list[dict[str, Any]]:
        """The tables of its TR."""
        tables: list[dict[str, Any]] = catalogue()[self.target.partition("?")[0]]["tables"]
        return tables

    def keys(self, table: Mapping[str, Any]) -> set[str]:
        """The keys of one table's lines."""
        return {key for key, _ in lines_of(table, self.pages)}

    def is_whole(self, earlier: Walk | None) -> bool:
        """The chain is closed; or all its tables are sliding windows, and it reaches back to what was served before."""
        if not self.pages or not self.next_key:
            return bool(self.pages)
        if any(table["mode"] == "keyed" for table in self.tables):
            return False
        windows = [table for table in self.tables if table["mode"] == "append"]
        return earlier is None or all(max(earlier.keys(table)) in self.keys(table) for table in windows)

    def rows(self) -> Tables:
        """What it says, under our names."""
        rows: Tables = {}
        for table in self.tables:
            for key, line in lines_of(table, self.pages):
                name = f"{table['table']}/{key}"
                assert name not in rows, f"{self.target}: {name} was served twice, which this checker does not settle"
                rows[name] = row_of(table, line, self.request)
        return rows


def walks_in(ledger: Path, resets: Mapping[str, datetime]) -> dict[str, list[Walk]]:
    """The whole walks of each target, in the order in which they were served; spoiled and refused ones are left out."""
    served: dict[str, list[Walk]] = {}
    walking: dict[str, Walk] = {}

    def finish(target: str) -> None:
        if walk := walking.pop(target, None):
            served.setdefault(target, []).append(walk)

    for text in ledger.read_text("utf-8").splitlines():
        line = json.loads(text)
        if line["api_id"] not in catalogue():  # the list of sectors, which is no report
            continue
        target = f"{line['api_id']}?" + "&".join(f"{name}={value}" for name, value in sorted(line["body"].items()))
        if line["cont_yn_in"] != "Y":
            finish(target)
            walking[target] = Walk(target, line["body"], datetime.fromisoformat(line["at_real"]))
        walk = walking.get(target)
        good = line["status"] == 200 and line["fault"] is None and line["answer"]["return_code"] == 0
        if walk is None or not good or (line["cont_yn_in"] == "Y" and line["next_key_in"] != walk.next_key):
            walking.pop(target, None)
            continue
        walk.pages.append(line["answer"])
        walk.next_key = line["next_key"] if line["cont_yn"] == "Y" else ""
    for target in list(walking):
        finish(target)
    whole = {target: _whole(walks, resets.get(target)) for target, walks in served.items()}
    return {target: walks for target, walks in whole.items() if walks}


def _whole(walks: Sequence[Walk], reset_at: datetime | None) -> list[Walk]:
    """The whole ones. The walk of the reset need not reach back: what was served before it may never have been stored,
    as when a poller is killed before its first commit.
    """
    of_reset = None if reset_at is None else walks[_place_of_reset(walks, reset_at)]
    whole: list[Walk] = []
    for walk in walks:
        if walk.is_whole(whole[-1] if whole and walk is not of_reset else None):
            whole.append(walk)
    return whole


def _place_of_reset(walks: Sequence[Walk], reset_at: datetime) -> int:
    """Where the walk is that led to the reset: the last one that began before it."""
    slack = timedelta(milliseconds=1)  # the stream's times are cut to milliseconds
    return max((place for place, walk in enumerate(walks) if walk.began <= reset_at + slack), default=0)


def expected_rows(walks: Sequence[Walk], reset_at: datetime) -> Tables:
    """What a snapshot holds after these walks: the last one, of sliding windows all that was served since the reset."""
    if not any(table["mode"] == "append" for table in walks[-1].tables):
        return walks[-1].rows()
    first = _place_of_reset(walks, reset_at)
    rows: Tables = {}
    for walk in walks[first:]:
        appended = {f"{table['table']}/" for table in walk.tables if table["mode"] == "append"}
        rows = {name: row for name, row in rows.items() if f"{name.partition('/')[0]}/" in appended} | walk.rows()
    for table in walks[-1].tables:
        mine = sorted(name for name in rows if name.startswith(f"{table['table']}/"))
        for name in mine[: -table["window"]] if table["window"] else []:
            del rows[name]
    return rows


# --- everything together -------------------------------------------------------------------------------------------


@dataclass
class Checked:
    """How much was checked, for people."""

    entries: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    commits: int = 0
    epochs: int = 0
    rows: int = 0
    walks: int = 0
    validated: int = 0
    texts: int = 0

    def __str__(self) -> str:
        types = ", ".join(f"{name} {count:,}" for name, count in sorted(self.types.items()))
        return (
            f"{self.entries.total():,} entries of {len(self.entries)} TRs in {self.commits:,} commits and "
            f"{self.epochs} epochs ({types}); {self.rows:,} rows equal to the last of {self.walks:,} whole walks; "
            f"{self.validated} entries validated; {self.texts:,} texts without a secret"
        )


def check(
    url: str, ledger: Path | None, *, secrets: Sequence[str], files: Iterable[Path], prefix: str = "sectorwire"
) -> Checked:
    """Check everything that a poller left behind. Without a ledger, all but what the broker served.

    `files` are searched for `secrets`, folders with all they hold.
    """
    server, checked, epochs = connect(url), Checked(), set[int]()
    try:
        folded: dict[str, dict[str, str]] = {}
        resets: dict[str, datetime] = {}
        for tr in catalogue():
            entries = read_entries(server, prefix, tr)
            check_order(entries, tr)
            stored_seq = int(server.hget(f"{prefix}:{{{tr}}}:meta", "seq") or 0)
            assert stored_seq == len(entries), f"{tr}: meta says seq {stored_seq}, the stream has {len(entries)}"
            folded |= fold(entries)
            resets |= {entry.target: entry.observed_at for entry in entries if entry.type == "reset"}
            checked.validated += check_schema(entries, tr)
            checked.entries[tr] = len(entries)
            checked.types.update(entry.type for entry in entries)
            checked.commits += len({(entry.target, entry.version) for entry in entries})
            epochs |= {entry.epoch for entry in entries}
            _check_states(server, prefix, tr, entries)
        checked.epochs = len(epochs)
        snapshots = _snapshots(server, prefix)
        _check_fold(folded, snapshots)
        checked.rows = sum(map(len, snapshots.values()))
        if ledger is not None:
            checked.walks = _check_served(snapshots, walks_in(ledger, resets), resets)
        checked.texts = check_secrets(server, prefix, secrets, files)
    finally:
        server.close()
    return checked


def _check_states(server: Any, prefix: str, tr: str, entries: Sequence[Entry]) -> None:
    """The state hash of each target has the version of its last commit in the stream."""
    for target, version in {entry.target: entry.version for entry in entries}.items():
        stored = server.hget(f"{prefix}:{{{tr}}}:state:{target.partition('?')[2]}", "version")
        assert stored == str(version), f"{target}: the state has version {stored}, the stream ends with {version}"


def _snapshots(server: Any, prefix: str) -> dict[str, dict[str, str]]:
    found = {}
    for key in server.scan_iter(f"{prefix}:*:snapshot:*", count=1000):
        tr, _, query = key.removeprefix(f"{prefix}:{{").partition("}:snapshot:")
        found[f"{tr}?{query}"] = server.hgetall(key)
    return found


def _check_fold(folded: Mapping[str, dict[str, str]], snapshots: Mapping[str, dict[str, str]]) -> None:
    """The stream, folded, is the snapshot, byte for byte."""
    assert {target for target, rows in folded.items() if rows} == snapshots.keys(), "the stream has other targets"
    for target, rows in snapshots.items():
        _compare(target, folded[target], rows, "the folded stream", "the snapshot")
        for name, text in rows.items():
            assert written(DECODER.decode(text)) == text, f"{target} {name} is not canonical JSON: {text}"


def _check_served(
    snapshots: Mapping[str, dict[str, str]], walks: Mapping[str, list[Walk]], resets: Mapping[str, datetime]
) -> int:
    """The snapshot is what the broker served last, element by element; how many walks there were."""
    assert walks.keys() == snapshots.keys(), f"only once served or stored: {walks.keys() ^ snapshots.keys()}"
    for target, served in walks.items():
        stored = {name: DECODER.decode(text) for name, text in snapshots[target].items()}
        _compare(target, expected_rows(served, resets[target]), stored, "the ledger", "the snapshot")
    return sum(map(len, walks.values()))


def _compare(target: str, one: Mapping[str, Any], other: Mapping[str, Any], one_is: str, other_is: str) -> None:
    assert one.keys() == other.keys(), (
        f"{target}: only in {one_is} {sorted(one.keys() - other.keys())[:5]}, "
        f"only in {other_is} {sorted(other.keys() - one.keys())[:5]}"
    )
    for name in one:
        assert one[name] == other[name], f"{target} {name}\n{one_is}: {one[name]}\n{other_is}: {other[name]}"


def check_secrets(server: Any, prefix: str, secrets: Sequence[str], files: Iterable[Path]) -> int:
    """Neither a key nor the token is anywhere but in the token's own hash; how many texts were searched."""
    tokens = [key for key in server.scan_iter(f"{prefix}:token:*") if server.type(key) == "hash"]
    sought = [*secrets, *(server.hget(key, "token") for key in tokens)]
    assert all(len(secret) >= 8 for secret in sought), "too short to be told from other text"
    searched = 0
    for name, text in _texts(server, set(tokens), files):
        searched += 1
        for secret in sought:
            assert secret not in text, f"a secret that begins with {secret[:4]!r} stands in {name}"
    return searched


def _texts(server: Any, tokens: set[str], files: Iterable[Path]) -> Iterator[tuple[str, str]]:
    for key in server.scan_iter(count=1000):
        kind = server.type(key)
        yield "the names of keys", key
        if kind == "stream":
            yield from ((f"{key} {entry_id}", str(fields)) for entry_id, fields in server.xrange(key))
        elif kind == "string":
            yield key, server.get(key)
        elif kind == "zset":
            yield key, str(server.zrange(key, 0, -1))
        elif key not in tokens:
            assert kind == "hash", f"{key} is a {kind}, which the contract does not know"
            yield from ((f"{key} {name}", f"{name} {text}") for name, text in server.hgetall(key).items())
    for path in files:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                yield str(file), file.read_text("utf-8", errors="replace")
