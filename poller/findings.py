"""What is known of a target goes in; what contradicts the calendar, in words with the remedy, comes out.

Pure. The surprise: one report dates its answers (the first day of ka20009), and that is the only place where a closure
that no calendar knows, or a wrong one, shows itself.
"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta

from poller.commit import Known
from poller.session import KST, Market, Timetable
from poller.trs.base import Append, Target

SETTLED = timedelta(minutes=5)
"""So long after the opening the broker may still show the day before."""


def day_contradiction(target: Target, known: Known, timetable: Timetable, now: datetime) -> str:
    """Why the broker's newest day is not the calendar's trading day, and what to configure; empty where they agree.

    Says nothing in the first minutes of a day, of a target that has not been seen on it, or of undated reports.
    """
    market: Market = target.moves.market
    trading_day = timetable.trading_day_at(now, market)
    settled = timetable.trading_day_at(now - SETTLED, market) == trading_day
    dated = next((t for t in target.tr.tables if isinstance(t, Append) and t.newest_is_trading_day), None)
    if dated is None or not settled or known.trading_day != trading_day or not known.rows.get(dated.name):
        return ""
    newest = date.fromisoformat(max(known.rows[dated.name]).partition("#")[0])
    if newest == trading_day:
        return ""
    told = f"the broker's newest day is {newest}, the calendar's {trading_day}: "
    if newest < trading_day:
        return told + f"if the exchanges are closed today, add closed_days = [{trading_day}] to [schedule]"
    return _ahead(told, newest, timetable, now, market)


def _ahead(told: str, newest: date, timetable: Timetable, now: datetime, market: Market) -> str:
    """What to say where the broker's day is later than the calendar's: nothing in the hour before that day opens."""
    today, ends = now.astimezone(KST).date(), datetime.combine(newest, time.max, KST)
    if newest <= today and timetable.trading_day_at(ends, market) != newest:
        return told + f"if the exchanges trade on {newest}, add open_days = [{newest}] to [schedule]"
    if newest == today and timetable.session_at(now, market) == "pre":
        return ""  # the broker may show the new day's zeros by then
    return told + f"{newest} has not opened yet: check this machine's clock; a simulator keeps hours of its own"
