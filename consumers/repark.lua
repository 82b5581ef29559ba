-- Give a parked entry the reason why it failed again: a new copy in the place of the old one.
--
-- KEYS  parked
-- ARGV  where it is parked, reason, stack
-- Returns 1, or 0 where somebody had dropped it meanwhile

local found = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])
if #found == 0 then
  return 0
end
local fields = found[1][2]
local kept = {'parked_why', ARGV[2], 'parked_stack', ARGV[3]}
for i = 1, #fields, 2 do
  if fields[i] ~= 'parked_why' and fields[i] ~= 'parked_stack' then
    kept[#kept + 1] = fields[i]
    kept[#kept + 1] = fields[i + 1]
  end
end
redis.call('XDEL', KEYS[1], ARGV[1])
redis.call('XADD', KEYS[1], '*', unpack(kept))
return 1
