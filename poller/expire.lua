-- Look after the groups of one stream that nobody reads: note them, and remove those that were noted long enough ago.
--
-- A group is abandoned if it needs what is older than the retention and nobody has asked for as long. It is removed if
-- nobody has asked or acknowledged since it was noted. All by the server's clock. Ours never are: those named here, and
-- those whose position is kept, under a key that begins as ARGV says and lies beside the stream.
--
-- Of a group that is not there any more the note is forgotten: one of the same name that somebody makes later begins
-- anew.
--
-- KEYS  stream, noted (hash: stream/group -> since when in milliseconds, and how far it was then)
-- ARGV  name of the stream, retention and time from note to removal in milliseconds, how the keys of positions begin,
--       names of our groups
-- Returns a list for each group that is abandoned or was: {new, noted, returned or removed; group; since when;
--         first and last entry that it needs, the seq of each or nothing; how many are pending}

local stream, noted = KEYS[1], KEYS[2]
local kind = redis.call('TYPE', stream).ok
if kind ~= 'stream' and kind ~= 'none' then
  return {}
end
local groups = kind == 'stream' and redis.call('XINFO', 'GROUPS', stream) or {}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local retention, grace = tonumber(ARGV[2]), tonumber(ARGV[3])
local ours = {}
for i = 5, #ARGV do
  ours[ARGV[i]] = true
end

local function facts_of(list)
  local facts = {}
  for i = 1, #list, 2 do
    facts[list[i]] = list[i + 1]
  end
  return facts
end

local function note_down(field, text)
  redis.call('HDEL', noted, field) -- so that a full server lets the script go on, see consumers/hold.lua
  redis.call('HSET', noted, field, text)
end

local function silent_ms(group)
  local silent = math.huge
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
    silent = math.min(silent, facts_of(consumer)['idle'])
  end
  return silent
end

local function id_and_seq(entry)
  if not entry then
    return '', ''
  end
  return entry[1], facts_of(entry[2])['seq'] or ''
end

local there = {}
for _, listed in ipairs(groups) do
  there[ARGV[1] .. '/' .. facts_of(listed)['name']] = true
end
for _, field in ipairs(redis.call('HKEYS', noted)) do
  if not there[field] and string.sub(field, 1, #ARGV[1] + 1) == ARGV[1] .. '/' then
    redis.call('HDEL', noted, field)
  end
end

local told = {}
for _, listed in ipairs(groups) do
  local group = facts_of(listed)
  local name = group['name']
  local field = ARGV[1] .. '/' .. name
  local oldest = group['pending'] > 0 and redis.call('XPENDING', stream, name)[2]
  local first = redis.call('XRANGE', stream, oldest or ('(' .. group['last-delivered-id']), '+', 'COUNT', 1)[1]
  local needed = oldest or (first and first[1])
  local silent = silent_ms(name)
  local abandoned = needed
    and now - tonumber(string.match(needed, '^%d+')) > retention
    and silent > retention
    and not ours[name]
    and redis.call('EXISTS', ARGV[4] .. name) == 0
  local note = redis.call('HGET', noted, field)
  local since, was = string.match(note or '', '^(%d+) (.*)$')
  local far = group['last-delivered-id'] .. ' ' .. group['pending']

  local what
  if not abandoned then
    what = note and 'returned'
    redis.call('HDEL', noted, field)
  elseif was ~= far then
    what = note and 'noted' or 'new'
    since = string.format('%.0f', now)
    note_down(field, since .. ' ' .. far)
  else
    local noted_ms = now - tonumber(since)
    what = 'noted'
    if silent < noted_ms then -- somebody has asked when nobody looked: noted since then
      since = string.format('%.0f', now - silent)
      note_down(field, since .. ' ' .. far)
    elseif noted_ms > grace then
      what = 'removed'
      redis.call('XGROUP', 'DESTROY', stream, name)
      redis.call('HDEL', noted, field)
    end
  end
  if what then
    local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
    local first_id, first_seq = id_and_seq(first)
    local last_id, last_seq = id_and_seq(last)
    told[#told + 1] = {what, name, since or '0', first_id, last_id, first_seq, last_seq, group['pending']}
  end
end
return told
