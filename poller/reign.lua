-- Put a leader's fence into one TR, and begin an epoch no entry has ever carried, on this server as it runs now.
--
-- KEYS  meta
-- ARGV  token, nonce, the least epoch, revision of the TR's declaration
-- Returns {verdict, epoch or revision as text}: ok epoch | fenced epoch | newer revision | type | evicts policy
--
-- evicts: it is asked here as well as at the start, since what took over from the server of the start is another one.

local found = redis.call('TYPE', KEYS[1]).ok
if found ~= 'hash' and found ~= 'none' then
  return {'type', '0'}
end
local token, nonce = tonumber(ARGV[1]), ARGV[2]
local reign = redis.call('HMGET', KEYS[1], 'fence', 'epoch', 'revision')
if tonumber(reign[3] or '0') > tonumber(ARGV[4]) then
  return {'newer', reign[3]}
end
local mine = ARGV[1] .. ':' .. nonce
local stored_token = tonumber(string.match(reign[1] or '0', '^%d+'))
if stored_token > token or (stored_token == token and reign[1] ~= mine) then
  return {'fenced', reign[2] or '0'}
end
local memory = redis.pcall('INFO', 'memory') -- a user who may not ask goes on without
local policy = type(memory) == 'string' and string.match(memory, 'maxmemory_policy:([%w-]+)') or 'noeviction'
if policy ~= 'noeviction' then
  return {'evicts', policy}
end
local epoch = math.max(tonumber(ARGV[3]), tonumber(reign[2] or '0') + 1)
local text = string.format('%.0f', epoch)
local info = redis.pcall('INFO', 'server')
local server = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
redis.call('HDEL', KEYS[1], 'server') -- a first write that a full server allows: who leads it has to trim it
redis.call('HSET', KEYS[1], 'fence', mine, 'epoch', text, 'revision', ARGV[4], 'server', server)
return {'ok', text}
