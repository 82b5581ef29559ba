-- Take one delivery into an endpoint's queue, unless it was taken before.
--
-- KEYS  seen, order, due, jobs, bodies
-- ARGV  decision id, lane, place in the order, job, body, now in ms, ids seen before this moment are forgotten
-- Returns 1, or 0 where it had been taken before

-- A full server allows this, and what follows it: a decision has to leave its stream, where it is kept until then.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[7])
if redis.call('ZADD', KEYS[1], 'NX', ARGV[6], ARGV[1]) == 0 then
  return 0
end
redis.call('ZADD', KEYS[2], 0, ARGV[3])
redis.call('ZADD', KEYS[3], 'NX', ARGV[6], ARGV[2])
redis.call('HSET', KEYS[4], ARGV[1], ARGV[4])
redis.call('HSET', KEYS[5], ARGV[1], ARGV[5])
return 1
