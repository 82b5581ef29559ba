-- Take or keep the lead: only the holder named by `takes_from` (or nobody) is followed.
--
-- KEYS  leader
-- ARGV  my "token:nonce", its lifetime in milliseconds, the holder that may be replaced ("" for none)
-- Returns the holder after the call, and how many milliseconds its lease still has

local holder = redis.call('GET', KEYS[1])
if not holder or holder == ARGV[1] or holder == ARGV[3] then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return {ARGV[1], tonumber(ARGV[2])}
end
return {holder, redis.call('PTTL', KEYS[1])}
