-- Begin an attempt: the first delivery of a lane that is due becomes ours until it is settled or its time is over.
--
-- What is due later than anything is ever put off was written before a clock was set back: it is due as well.
--
-- KEYS  active, order, due, jobs, bodies, claims
-- ARGV  my name, lane, now in ms, ours until in ms, claim, the latest that anything can be due in ms
-- Returns place, job, body, the last two empty where they are lost; or nothing where another sender is active or
-- nothing is due

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {}
end
local due = redis.call('ZSCORE', KEYS[3], ARGV[2])
if not due or (tonumber(due) > tonumber(ARGV[3]) and tonumber(due) <= tonumber(ARGV[6])) then
  return {}
end
local first = redis.call('ZRANGEBYLEX', KEYS[2], '[' .. ARGV[2] .. ':', '(' .. ARGV[2] .. ';', 'LIMIT', 0, 1)[1]
if not first then
  redis.call('ZREM', KEYS[3], ARGV[2])
  return {}
end
local id = string.match(first, '^[^:]*:[^:]*:(.*)$') or first
redis.call('HDEL', KEYS[6], ARGV[2]) -- a full server allows this, and what follows it: what is sent leaves the queue
redis.call('ZADD', KEYS[3], ARGV[4], ARGV[2])
redis.call('HSET', KEYS[6], ARGV[2], ARGV[5])
return {first, redis.call('HGET', KEYS[4], id) or '', redis.call('HGET', KEYS[5], id) or ''}
