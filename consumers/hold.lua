-- Take or keep the one active place of a group.
--
-- KEYS  active
-- ARGV  my name, the lease's lifetime in milliseconds
-- Returns the holder after the call

local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return holder
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
