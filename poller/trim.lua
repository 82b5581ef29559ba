-- Trim one stream: what is older than the retention, but nothing that any group still needs.
--
-- A group needs what it has not been given and what it was given and has not acknowledged. The list of groups is the
-- server's own, so a group that nobody registered with us is protected as well.
--
-- KEYS  changes
-- ARGV  the first millisecond to keep, the share of the entries to keep (1 keeps all that retention keeps)
-- Returns {entries removed, bytes that the stream holds afterwards}

local stream = KEYS[1]
if redis.call('TYPE', stream).ok ~= 'stream' then
  return {0, 0}
end

local function parts(id)
  local ms, number = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(number)
end
local function earlier(one, other)
  local ms, number = parts(one)
  local other_ms, other_number = parts(other)
  return ms < other_ms or (ms == other_ms and number < other_number)
end

local keep_from = ARGV[1] .. '-0'
local share = tonumber(ARGV[2])
local before = redis.call('XLEN', stream)
if share < 1 and before > 0 then
  -- the id that far from the end; ids are spread evenly enough for a bound that is corrected every minute
  local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1][1]
  local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1][1]
  local first_ms, first_number = parts(first)
  local last_ms, last_number = parts(last)
  local ms, number = last_ms - (last_ms - first_ms) * share, 0
  if first_ms == last_ms then
    -- one burst; or the clock was set back, and until it is there again the ids grow in their number alone
    number = last_number - (last_number - first_number) * share
  end
  local cut = string.format('%.0f-%.0f', ms, number)
  if earlier(keep_from, cut) then
    keep_from = cut
  end
end

for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local facts = {}
  for i = 1, #group, 2 do
    facts[group[i]] = group[i + 1]
  end
  local needed = facts['last-delivered-id']
  if facts['pending'] > 0 then
    local oldest = redis.call('XPENDING', stream, facts['name'])[2]
    if earlier(oldest, needed) then
      needed = oldest
    end
  end
  if earlier(needed, keep_from) then
    keep_from = needed
  end
end

redis.call('XTRIM', stream, 'MINID', keep_from)
return {before - redis.call('XLEN', stream), redis.call('MEMORY', 'USAGE', stream)}
