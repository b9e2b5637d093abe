-- Return a slot, unless a later one has been given out.
-- ARGV  2 account, 3 interval us, 4 the slot's time, us

local slot_us = tonumber(ARGV[4])
if tonumber(redis.call('HGET', MODEL, 'a:' .. ARGV[2])) == slot_us + tonumber(ARGV[3]) then
  set_free(ARGV[2], slot_us)
end
return 1
