-- Take, keep or let go the one active place of a group.
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
  redis.call('PEXPIRE', KEYS[1], ARGV[2]) -- which a full server allows, so that a group can still be read down
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return ARGV[1]
