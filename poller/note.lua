-- Write down an attempt that brought no answer, if its poller still leads.
--
-- KEYS  meta, state
-- ARGV  fence, then fields and values
-- Returns 1, or 0 where another poller leads

if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[2], unpack(ARGV, 2))
return 1
