-- Move one entry out of a group's way: copied with the reason, then acknowledged, both or neither.
--
-- HDEL comes before XADD, so that a full server lets the script go on (see hold.lua): an entry that cannot be parked
-- would stop its group, and with it the trimming that makes room.
--
-- KEYS  stream, parked, failing
-- ARGV  group, entry id, reason, stack of the last error
-- Returns 1, or 0 where the entry had been trimmed and is only acknowledged

local found = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])
redis.call('HDEL', KEYS[3], ARGV[2])
if #found > 0 then
  local fields = found[1][2]
  for _, extra in ipairs({
    'parked_id', ARGV[2], 'parked_by', ARGV[1], 'parked_why', ARGV[3], 'parked_stack', ARGV[4],
  }) do
    fields[#fields + 1] = extra
  end
  redis.call('XADD', KEYS[2], '*', unpack(fields))
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
return #found
