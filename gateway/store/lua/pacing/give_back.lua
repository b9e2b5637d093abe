-- Return a slot, unless a later one has been given out.
-- args  account, interval_us, slot_us

local free_us = tonumber(call('HGET', MODEL, 'a:' .. args.account))
if free_us == args.slot_us + args.interval_us then set_free(args.account, args.slot_us) end
return 1
