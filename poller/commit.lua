-- One poll: check everything, then write rows, entries, seq and state, all or nothing.
--
-- Redis does not roll back: an error after the first write leaves the earlier ones in place. So every check, key types
-- included, stands before the first write, and no argument is parsed after it. Rows and entries are opaque strings here.
--
-- KEYS  meta, changes, snapshot, state
-- ARGV  fence, epoch, version before, version after, commit id, id prefix, source, time, clear (1 or 0),
--       then four lists, each led by its length: state fields and values, row names and values, row names to delete,
--       entries (type, subject, data)
-- Returns {verdict, number}: ok seq | again seq | fenced 0 | restarted 0 | stale version | type which key
--
-- restarted: this server is not the one on which the epoch began (it was started again, or is a replica that took over),
-- so it may have lost what somebody has read by now. An entry that takes the place of a lost one needs a new epoch.

local meta, changes, snapshot, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local fence, epoch, version_before, version_after, commit_id = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local id_prefix, source, time, clear = ARGV[6], ARGV[7], ARGV[8], ARGV[9]

for place, wanted in ipairs({'hash', 'stream', 'hash', 'hash'}) do
  local found = redis.call('TYPE', KEYS[place]).ok
  if found ~= wanted and found ~= 'none' then
    return {'type', place}
  end
end

local reign = redis.call('HMGET', meta, 'fence', 'epoch', 'seq', 'server')
if reign[1] ~= fence or reign[2] ~= epoch then
  return {'fenced', 0}
end
local info = redis.pcall('INFO', 'server')  -- 8 us; a user who may not ask goes on without
if type(info) == 'string' and string.match(info, 'run_id:(%x+)') ~= reign[4] then
  return {'restarted', 0}
end
local seq = tonumber(reign[3] or '0')
local stored = redis.call('HMGET', state, 'version', 'commit')
local version = stored[1] or '0'
if version ~= version_before then
  if version == version_after and stored[2] == commit_id then
    return {'again', seq}
  end
  return {'stale', tonumber(version)}
end

local at = 10
local function take_list()
  local size = tonumber(ARGV[at])
  local first = at + 1
  at = first + size
  return first, at - 1
end
local state_first, state_last = take_list()
local rows_first, rows_last = take_list()
local gone_first, gone_last = take_list()
local entries_first, entries_last = take_list()

-- unpack puts its values on Lua's stack, which holds some 8,000
local function in_pieces(command, key, first, last)
  for from = first, last, 1000 do
    redis.call(command, key, unpack(ARGV, from, math.min(from + 999, last)))
  end
end

if clear == '1' then
  redis.call('DEL', snapshot)
end
in_pieces('HDEL', snapshot, gone_first, gone_last)
in_pieces('HSET', snapshot, rows_first, rows_last)
local number = 0
for entry = entries_first, entries_last, 3 do
  number = number + 1
  redis.call('XADD', changes, '*', 'specversion', '1.0', 'id', id_prefix .. number, 'source', source,
    'type', ARGV[entry], 'subject', ARGV[entry + 1], 'time', time, 'seq', string.format('%.0f', seq + number),
    'datacontenttype', 'application/json', 'data', ARGV[entry + 2])
end
if number > 0 then
  redis.call('HSET', meta, 'seq', string.format('%.0f', seq + number))
  redis.call('HSET', state, 'commit', commit_id)
end
in_pieces('HSET', state, state_first, state_last)
return {'ok', seq + number}
