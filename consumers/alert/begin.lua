-- Begin an attempt: the first delivery of a lane that is due becomes ours until it is settled or its time is over.
--
-- KEYS  active, order, due, jobs, bodies, claims
-- ARGV  my name, lane, now in ms, ours until in ms, claim
-- Returns place, job, body; or nothing where another sender is active or nothing is due

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {}
end
local due = redis.call('ZSCORE', KEYS[3], ARGV[2])
if not due or tonumber(due) > tonumber(ARGV[3]) then
  return {}
end
local first = redis.call('ZRANGEBYLEX', KEYS[2], '[' .. ARGV[2] .. ':', '(' .. ARGV[2] .. ';', 'LIMIT', 0, 1)[1]
if not first then
  redis.call('ZREM', KEYS[3], ARGV[2])
  return {}
end
local id = string.match(first, '^[^:]*:[^:]*:(.*)$')
redis.call('ZADD', KEYS[3], ARGV[4], ARGV[2])
redis.call('HSET', KEYS[6], ARGV[2], ARGV[5])
return {first, redis.call('HGET', KEYS[4], id), redis.call('HGET', KEYS[5], id)}
