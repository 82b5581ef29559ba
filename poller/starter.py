"""The configuration that `sectorwire init` writes: commented, and fitting the server it is for."""

from __future__ import annotations

TEMPLATE = """\
# sectorwire watches the six sector (업종) reports of Kiwoom's REST API and tells what changed.
# Secrets are never in this file. Set KIWOOM_APP_KEY and KIWOOM_SECRET_KEY, or KIWOOM_APP_KEY_FILE and
# KIWOOM_SECRET_KEY_FILE with the paths of the files that Kiwoom handed out.

[kiwoom]
environment = "{environment}"        # "real" or "mock"; for `sectorwire simulate` write instead:
# base_url = "http://127.0.0.1:9100"
{rate}

[schedule]
sessions = "market"           # poll when the market moves; "always" polls around the clock
# closed_days = [2026-12-31]  # days on which the exchanges are closed though no public calendar says so
# open_days = []              # the reverse
# late_opens = {{ "2028-01-03" = "10:00-15:30" }}   # days that open late; those up to 2027 are known

[bus]
# url = "redis://127.0.0.1:6379/0"   # leave out for a server of our own, kept under [data] dir; REDIS_URL overrides
prefix = "sectorwire"
retention = "24h"             # what consumer groups still need is kept longer, up to max_bytes
max_bytes = "1GB"

[data]
dir = "data"                  # embedded server, answers put aside

[archive]
path = "data/archive"         # Delta Lake tables, one per report table

# Alerts: a rule and where to send. The secret, whsec_ and base64 of 24 to 64 bytes, is in the variable DESK_SECRET.
#
# [[rule]]
# name = "kospi-falls"
# title = "코스피 급락"
# tr = "ka20003"
# keys = ["001"]              # leave out for every row
# when = {{ kind = "compare", field = "change_pct", op = "<=", value = -2, clear = -1.5 }}
# for = "30s"
# notify = ["desk"]
#
# [[endpoint]]
# name = "desk"
# url = "https://example.com/hook"
# secret_env = "DESK_SECRET"

# The plan. A list makes one target per value; several lists make the product. `sectorwire check` proves that it fits.
# `sectorwire catalogue` lists what each report holds.

[[poll]]                      # 전업종지수: every index with its breadth, 65 sectors for two requests
tr = "ka20003"
target = {{ inds_cd = ["001", "101"] }}
every = "{every_indices}"
# off_hours = "30m"           # ask now and then while the market is shut, too; left out: not at all
priority = 1                  # who pauses first when memory is full: the highest number

[[poll]]                      # 업종현재가: one sector with its ten-second trail
tr = "ka20001"
target = {{ inds_cd = {quotes} }}
every = "{every_quotes}"
priority = 1

[[poll]]                      # 업종별투자자순매수: who bought and who sold; moves about every 90 s
tr = "ka10051"
target = {{ mrkt_tp = ["0", "1"], amt_qty_tp = "0", stex_tp = "{exchange}" }}
every = "{every_flows}"
priority = 2

[[poll]]                      # 업종현재가일별: day by day
tr = "ka20009"
target = {{ inds_cd = ["001", "101"] }}
every = "{every_days}"
priority = 3

[[poll]]                      # 업종별주가: every stock of a sector, 100 a page
tr = "ka20002"
target = {{ inds_cd = "013", stex_tp = "{exchange}" }}
every = "{every_stocks}"
priority = 3

[[poll]]                      # 업종프로그램: programme trading of one stock
tr = "ka10010"
target = {{ stk_cd = ["005930"] }}
every = "{every_program}"
priority = 3
"""

REAL = {
    "rate": "requests_per_second = 2       # per TR, up to 4; the server refuses at 5",
    "exchange": "3",
    "quotes": '["001", "101", "201"]',
    "every_indices": "5s",
    "every_quotes": "10s",
    "every_flows": "60s",
    "every_days": "60s",
    "every_stocks": "60s",
    "every_program": "30s",
}
MOCK = {
    "rate": "# requests_per_second is for the real server; the mock bears one request in 1.2 s over everything",
    "exchange": "1",
    "quotes": '["001", "101"]',
    "every_indices": "20s",
    "every_quotes": "20s",
    "every_flows": "120s",
    "every_days": "120s",
    "every_stocks": "120s",
    "every_program": "60s",
}


def starter_config(environment: str) -> str:
    """A whole `sectorwire.toml` for "real" or "mock"."""
    return TEMPLATE.format(environment=environment, **(REAL if environment == "real" else MOCK))
