-- One batch: write what the rules remember, what they decided and how far they have read, all or nothing.
--
-- The state has a version, which every write raises: who computed on an older one is told so and writes nothing, be it
-- a rival or a repeat of a write whose answer was lost. A tick also has to have seen everything that was published. And
-- what was decided on has to be in the stream still: it may have been read before the server lost it.
-- Every check, key types included, stands before the first write.
--
-- Nothing is trimmed here: only trim.lua knows which decisions no group needs any more.
--
-- KEYS  alerting (hash), alerts (stream), changes (stream)
-- ARGV  version before, position after, tick (1 or 0), the id of the entry at that position (empty: do not look),
--       then three lists, each led by its length: state fields and values, state fields to delete,
--       decisions (id, source, type, subject, time, data)
-- Returns {verdict, version}: ok | stale | behind | gone | type

local alerting, alerts, changes = KEYS[1], KEYS[2], KEYS[3]
local version_before, position, tick, entry = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local function is_or_may_be(key, wanted)
  local found = redis.call('TYPE', key).ok
  return found == wanted or found == 'none'
end
if not (is_or_may_be(alerting, 'hash') and is_or_may_be(alerts, 'stream') and is_or_may_be(changes, 'stream')) then
  return {'type', 0}
end

local version = redis.call('HGET', alerting, 'version') or '0'
if version ~= version_before then
  return {'stale', tonumber(version)}
end
if tick == '1' and redis.call('EXISTS', changes) == 1 then
  local facts = redis.call('XINFO', 'STREAM', changes)
  for i = 1, #facts, 2 do
    if facts[i] == 'last-generated-id' and facts[i + 1] ~= position then
      return {'behind', tonumber(version)}
    end
  end
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
local function is_gone()
  local found = redis.call('XRANGE', changes, position, position)[1]
  if found then
    for i = 1, #found[2], 2 do
      if found[2][i] == 'id' then
        return found[2][i + 1] ~= entry
      end
    end
    return true
  end
  if redis.call('EXISTS', changes) == 0 then
    return true
  end
  local facts = {}
  local told = redis.call('XINFO', 'STREAM', changes)
  for i = 1, #told, 2 do
    facts[told[i]] = told[i + 1]
  end
  local first = facts['first-entry']
  local trimmed = not first or earlier(position, first[1])
  local deleted = not earlier(facts['max-deleted-entry-id'], position)
  return earlier(facts['last-generated-id'], position) or not (trimmed or deleted)
end
if entry ~= '' and is_gone() then
  return {'gone', tonumber(version)}
end

local at = 5
local function take_list()
  local size = tonumber(ARGV[at])
  local first = at + 1
  at = first + size
  return first, at - 1
end
local set_first, set_last = take_list()
local gone_first, gone_last = take_list()
local decided_first, decided_last = take_list()

if tick ~= '1' then
  -- A full server refuses a script's first write if it needs memory, and no later one. A batch has to pass: until it
  -- was read, it cannot be trimmed, and the server stays full. A tick reads nothing, and waits.
  redis.call('HDEL', alerting, '')
end
for i = set_first, set_last, 2 do
  redis.call('HSET', alerting, ARGV[i], ARGV[i + 1])
end
for i = gone_first, gone_last do
  redis.call('HDEL', alerting, ARGV[i])
end
for i = decided_first, decided_last, 6 do
  local seq = redis.call('HINCRBY', alerting, 'seq', 1)
  redis.call('XADD', alerts, '*',
    'specversion', '1.0', 'id', ARGV[i], 'source', ARGV[i + 1], 'type', ARGV[i + 2], 'subject', ARGV[i + 3],
    'time', ARGV[i + 4], 'seq', seq, 'datacontenttype', 'application/json', 'data', ARGV[i + 5])
end
redis.call('HSET', alerting, 'position', position)
return {'ok', redis.call('HINCRBY', alerting, 'version', 1)}
