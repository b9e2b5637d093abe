-- Give out no slot of an account for a while.
-- args  account, delay_us

local free_us = tonumber(call('HGET', MODEL, 'a:' .. args.account)) or 0
set_free(args.account, math.max(free_us, now_us + args.delay_us))
return 1
