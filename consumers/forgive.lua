-- Take one hand-out of entries back, where nobody has handed them out since. How long they were idle stays.
--
-- KEYS  stream
-- ARGV  group, how often each counts as handed out from now on at most, entry ids
-- Returns how many were taken back; the others are another's business by now

local most, taken = tonumber(ARGV[2]), 0
for i = 3, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
  if pending and pending[4] <= most + 1 then
    local count = math.min(pending[4], most)
    redis.call('XCLAIM', KEYS[1], ARGV[1], pending[2], 0, ARGV[i], 'IDLE', pending[3], 'RETRYCOUNT', count, 'JUSTID')
    taken = taken + 1
  end
end
return taken
