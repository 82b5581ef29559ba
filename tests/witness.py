"""Every change of a made-up server goes in; the first broken promise comes out, in the very step that broke it.

A server like the model's, that looks at each commit, acknowledgement and trim as it happens, and remembers everything
that was ever published, also what a restart has taken back. It works out what has to hold from the entries alone, with
the independent checker's reading of them.

The surprises: what was lost counts as well, because somebody may have read it, so no id and no `(epoch, seq)` may come
again on any server; and what a group needs is worked out here from what it was given and gave back, not by the script
that trims.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from tests import checker
from tests.model_groups import Id, Stream
from tests.model_server import ModelServer, Saved

Effect = Callable[["Witness", str, dict[str, str]], bool]
"""Whether a group has done what it does with an entry: the server that is told so, group, fields of the entry."""


class Broken(AssertionError):
    """A promise does not hold."""


@dataclass
class Past:
    """Everything that ever was published by anybody on any server."""

    ids: dict[str, str] = field(default_factory=dict)
    """What each id stands for."""
    seqs: dict[tuple[str, int, int], str] = field(default_factory=dict)
    """Which entry has a `seq` of an epoch, by TR."""
    lost: set[str] = field(default_factory=set)
    """The ids of what a restart or a failover has taken back."""
    broken: list[str] = field(default_factory=list)
    """What did not hold: raised where it happened, and kept, since whoever asked may have waited the error out."""


class Kept(NamedTuple):
    """What a server held, and what its streams come to when folded."""

    saved: Saved
    seqs: dict[str, int]
    newest: dict[str, tuple[int, int]]
    folded: dict[str, dict[str, str]]


class Witness(ModelServer):
    """A model server that looks at what it is made to do."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        super().__init__(now_ms)
        self.past = Past()
        self.done: Effect = lambda server, group, fields: True
        self._seqs: dict[str, int] = {}
        self._newest: dict[str, tuple[int, int]] = {}
        """The last epoch and version of each target."""
        self._folded: dict[str, dict[str, str]] = {}

    def _hold(self, promise: bool, told: str) -> None:
        if not promise:
            self.past.broken.append(told)
            raise Broken(told)

    # --- restarts

    def keep(self) -> Kept:
        """What is there now, to go back to."""
        folded = {target: dict(rows) for target, rows in self._folded.items()}
        return Kept(self.copy(), dict(self._seqs), dict(self._newest), folded)

    def go_back(self, kept: Kept) -> None:
        """Start again on what was kept. What comes now needs a new epoch."""
        self.lose_after(kept)
        self.restore(kept.saved)
        for key in self.keys:
            if key.endswith(":changes"):  # a replica may have what the server it follows has lost meanwhile
                self.past.lost -= {one["id"] for one in self.entries(key)}
        self._seqs = dict(kept.seqs)
        self._newest = {target: (epoch, -1) for target, (epoch, _) in (kept.newest | self._newest).items()}
        self._folded = {target: dict(rows) for target, rows in kept.folded.items()}

    def lose_after(self, kept: Kept) -> None:
        """Remember as lost what was published here since then."""
        for key, held in self.keys.items():
            if isinstance(held, Stream) and key.endswith(":changes"):
                tr = key.partition("{")[2].partition("}")[0]
                self.past.lost |= {one["id"] for one in held.entries if int(one["seq"]) > kept.seqs.get(tr, 0)}

    def replica(self, kept: Kept) -> Witness:
        """Another server with what was kept, and the same past."""
        other = Witness(self.now_ms)
        other.past, other.done, other.commits, other.run_id = self.past, self.done, self.commits, f"{self.run_id}'"
        other.go_back(kept)
        return other

    # --- commits

    def committed(self, source: str, before: int, after: int, last_good: str) -> None:
        """See that one commit is as promised."""
        super().committed(source, before, after, last_good)
        target = source.removeprefix("/kiwoom/")
        tr = target.partition("?")[0]
        prefix = next(key.partition(":")[0] for key in self.keys if f":{{{tr}}}:" in key)
        stream, last = self.stream(f"{prefix}:{{{tr}}}:changes"), self._seqs.get(tr, 0)
        new = [entry for entry in stream.entries[-300:] if int(entry["seq"]) > last]
        entries = [checker._entry(fields) for fields in new]
        for entry in entries:
            last += 1
            text = "".join(entry.fields[name] for name in ("type", "subject", "data"))
            seq = int(entry.fields["seq"])
            self._hold(seq == last, f"{entry.fields['id']} has seq {seq} after {last - 1}")
            other = self.past.ids.setdefault(entry.fields["id"], text)
            self._hold(other == text, f"the id {entry.fields['id']} came twice")
            owner = self.past.seqs.setdefault((tr, entry.epoch, seq), entry.fields["id"])
            self._hold(owner == entry.fields["id"], f"epoch {entry.epoch} of {tr} has two entries with seq {seq}")
        meta = self.hash(f"{prefix}:{{{tr}}}:meta")
        self._hold(int(meta.get("seq", 0)) == last, f"{tr} counts {meta.get('seq')} entries and has {last}")
        self._seqs[tr] = last
        reign = int(meta["epoch"])
        strange = [entry.fields["id"] for entry in entries if entry.epoch != reign]
        self._hold(not strange, f"{strange} were published in epoch {reign}")
        self._see_versions(target, reign, before, after)
        self._see_fold(target, prefix, entries)

    def _see_versions(self, target: str, epoch: int, before: int, after: int) -> None:
        newest_epoch, newest = self._newest.get(target, (0, 0))
        self._hold(after - before in {0, 1}, f"{target} went from version {before} to {after}")
        goes_on = epoch == newest_epoch and before == newest
        self._hold(epoch > newest_epoch or goes_on, f"{target} went from {newest_epoch}.{newest} to {epoch}.{before}")
        self._newest[target] = (epoch, after)

    def _see_fold(self, target: str, prefix: str, entries: list[checker.Entry]) -> None:
        try:
            checker.fold(entries, self._folded)
        except (AssertionError, KeyError) as error:
            self._hold(False, f"the stream of {target} contradicts itself: {error!r}")
        tr, _, query = target.partition("?")
        snapshot = self.hash(f"{prefix}:{{{tr}}}:snapshot:{query}")
        folded = self._folded.get(target, {})
        if snapshot != folded:
            differing = [name for name in snapshot.keys() | folded.keys() if snapshot.get(name) != folded.get(name)]
            self._hold(False, f"folded, the stream of {target} is not its snapshot, at {sorted(differing)[:3]}")

    # --- groups

    def xack(self, key: str, name: str, *ids: str) -> int:
        """See that what is acknowledged has been done."""
        for entry_id in ids:
            for _, fields in self.xrange(key, entry_id, entry_id):
                self._hold(self.done(self, name, fields), f"{name} acknowledged {fields.get('id', entry_id)} undone")
        return super().xack(key, name, *ids)

    def trim_below(self, key: str, keep_from: Id) -> int:
        """See that no group needs what is removed."""
        for name, group in self.stream(key).groups.items():
            for entry_id in self.stream(key).ids:
                if entry_id >= keep_from:
                    break
                needed = entry_id > group.last_delivered or entry_id in group.pending
                self._hold(not needed, f"{entry_id} was trimmed, and {name} needs it")
        return super().trim_below(key, keep_from)
