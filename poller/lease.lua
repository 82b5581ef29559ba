-- Take, keep or let go the lead: only the holder named last (or nobody) is followed.
--
-- KEYS  leader
-- ARGV  my "token:nonce", its lifetime in milliseconds (0 lets it go), the holder that may be replaced ("" for none)
-- Returns the holder after the call (me as well where I let it go), how many milliseconds its lease still has, and
-- whether the server is full (1)

local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] and holder ~= ARGV[3] then
  return {holder, redis.call('PTTL', KEYS[1]), 0}
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
  return {ARGV[1], 0, 0}
end
-- A full server refuses SET, but only as a script's first write (Redis 7.0, Valkey 9.1): after a DEL it is done. Who
-- could not lead there could not trim either, and the server would stay full.
local full = 0
if redis.pcall('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]).err then
  full = 1
  redis.call('DEL', KEYS[1])
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return {ARGV[1], tonumber(ARGV[2]), full}
