-- Acknowledge what is done, and write down how far the group is: up to there everything is done, whoever had it.
--
-- Members that share a group finish in any order. If the last one to finish wrote its own entry down, a group that the
-- server loses would be made again behind what another still had in hand, and that would be lost.
--
-- Nor is anything acknowledged that was read before the server lost it, if another entry has its place by now. Where the
-- last one that is there is the one that was read, so are all before it.
--
-- KEYS  stream, position, failing
-- ARGV  group, how many, entry ids in order, then as many ids that the entries have of themselves
-- Returns the position, or an error that begins with GONE

local count = tonumber(ARGV[2])
for place = count + 2, 3, -1 do
  local found = redis.call('XRANGE', KEYS[1], ARGV[place], ARGV[place])[1]
  if found then
    local own = ''
    for i = 1, #found[2], 2 do
      if found[2][i] == 'id' then
        own = found[2][i + 1]
      end
    end
    if own ~= ARGV[place + count] then
      return redis.error_reply('GONE the server has lost what was read, and another entry stands there')
    end
    break
  end
end
redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 3, count + 2))
redis.call('HDEL', KEYS[3], unpack(ARGV, 3, count + 2))
local position
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local facts = {}
  for i = 1, #group, 2 do
    facts[group[i]] = group[i + 1]
  end
  if facts['name'] == ARGV[1] then
    position = facts['last-delivered-id']
    if facts['pending'] > 0 then -- the id before the oldest
      local ms, number = string.match(redis.call('XPENDING', KEYS[1], ARGV[1])[2], '^(%d+)-(%d+)$')
      if number == '0' then
        position = string.format('%.0f-18446744073709551615', tonumber(ms) - 1)
      else
        position = string.format('%s-%.0f', ms, tonumber(number) - 1)
      end
    end
  end
end
if position then
  redis.call('SET', KEYS[2], position) -- which a full server does not refuse after XACK, see hold.lua
end
return position
