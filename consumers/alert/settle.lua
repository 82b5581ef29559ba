-- Write down how an attempt ended, if it is still ours: done, dead, or due again; all or nothing.
--
-- Where too many are dead the oldest are dropped, and counted in the state as `dropped`.
--
-- KEYS  order, due, jobs, bodies, claims, dead, state
-- ARGV  lane, claim, place, decision id, what (done, dead or again), now in ms, due in ms, job, why, how many dead are
--       kept, then fields and values of the state
-- Returns {1, how many were dropped}, or {0, 0} where it was not ours any more

if redis.call('HGET', KEYS[5], ARGV[1]) ~= ARGV[2] then
  return {0, 0}
end
local dropped = 0
redis.call('HDEL', KEYS[5], ARGV[1]) -- a full server allows this, and what follows it: most of it leaves the queue
if #ARGV > 10 then
  redis.call('HSET', KEYS[7], unpack(ARGV, 11))
end
if ARGV[5] == 'again' then
  redis.call('HSET', KEYS[3], ARGV[4], ARGV[8])
  redis.call('ZADD', KEYS[2], ARGV[7], ARGV[1])
  return {1, 0}
end
if ARGV[5] == 'dead' then
  redis.call('XADD', KEYS[6], '*', 'id', ARGV[4], 'lane', ARGV[1], 'place', ARGV[3], 'why', ARGV[9], 'at', ARGV[6],
    'job', ARGV[8], 'body', redis.call('HGET', KEYS[4], ARGV[4]) or '')
  dropped = redis.call('XTRIM', KEYS[6], 'MAXLEN', '=', ARGV[10])
  if dropped > 0 then
    redis.call('HINCRBY', KEYS[7], 'dropped', dropped)
  end
end
redis.call('HINCRBY', KEYS[7], ARGV[5], 1)
redis.call('ZREM', KEYS[1], ARGV[3])
redis.call('HDEL', KEYS[3], ARGV[4])
redis.call('HDEL', KEYS[4], ARGV[4])
local next = redis.call('ZRANGEBYLEX', KEYS[1], '[' .. ARGV[1] .. ':', '(' .. ARGV[1] .. ';', 'LIMIT', 0, 1)
if #next > 0 then
  redis.call('ZADD', KEYS[2], ARGV[6], ARGV[1])
else
  redis.call('ZREM', KEYS[2], ARGV[1])
end
return {1, dropped}
