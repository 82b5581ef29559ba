-- Take one hand-out of an entry back, if nobody has handed it out since.
--
-- KEYS  stream
-- ARGV  group, entry id, handed out so often now, so often before
-- Returns 1, or 0 where it is another's business by now

local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)[1]
if not pending or pending[4] ~= tonumber(ARGV[3]) then
  return 0
end
redis.call('XCLAIM', KEYS[1], ARGV[1], pending[2], 0, ARGV[2], 'RETRYCOUNT', ARGV[4], 'JUSTID')
return 1
