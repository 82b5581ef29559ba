-- Put one dead letter back into its endpoint's queue, at its old place in the order.
--
-- KEYS  dead, order, due, jobs, bodies
-- ARGV  dead letter, decision id, lane, place, job, body, now in ms
-- Returns 1, or 0 where somebody else had taken it

-- A full server allows this, and what follows it: the letter only moves.
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then
  return 0
end
redis.call('ZADD', KEYS[2], 0, ARGV[4])
redis.call('ZADD', KEYS[3], 'NX', ARGV[7], ARGV[3])
redis.call('HSET', KEYS[4], ARGV[2], ARGV[5])
redis.call('HSET', KEYS[5], ARGV[2], ARGV[6])
return 1
