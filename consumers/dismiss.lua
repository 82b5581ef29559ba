-- Take consumers off a group that are gone and own nothing. Who owns an entry stays: removing it would lose the entry.
--
-- KEYS  stream
-- ARGV  group, the consumer that asks, idle for at least so many milliseconds
-- Returns how many were removed

local removed = 0
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local facts = {}
  for i = 1, #consumer, 2 do
    facts[consumer[i]] = consumer[i + 1]
  end
  if facts['name'] ~= ARGV[2] and facts['pending'] == 0 and facts['idle'] >= tonumber(ARGV[3]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], facts['name'])
    removed = removed + 1
  end
end
return removed
