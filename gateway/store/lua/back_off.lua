-- Give out no slot of an account for a while.
-- ARGV  2 account, 3 us from now

local free_us = tonumber(redis.call('HGET', MODEL, 'a:' .. ARGV[2])) or 0
set_free(ARGV[2], math.max(free_us, now_us + tonumber(ARGV[3])))
return 1
