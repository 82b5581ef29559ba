-- Take, keep or let go the one active place of a group.
--
-- Taking begins with a DEL of what is not there: a full server refuses SET, but not DEL, and refuses nothing more of a
-- script that has written, because that cannot be stopped half-way (seen on Redis 7.0 and Valkey 9.1). Else no
-- member that starts could read its group down, nothing could be trimmed, and a full server would stay full.
--
-- KEYS  active
-- ARGV  my name, the lease's lifetime in milliseconds (0 lets it go)
-- Returns the holder after the call; me as well where I let it go

local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return holder
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
elseif holder then
  redis.call('PEXPIRE', KEYS[1], ARGV[2]) -- which a full server allows
else
  redis.call('DEL', KEYS[1])
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return ARGV[1]
