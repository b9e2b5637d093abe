-- Note what became of a client; once, as far as is remembered.

local LEFT = BASE .. 'left' -- zset: request that has left -> when, ms

local has_left = call('ZADD', LEFT, 'NX', text(now_ms), args.request) == 0
call('ZREMRANGEBYSCORE', LEFT, '-inf', text(now_ms - LEFT_KEPT_MS))
call('ZREMRANGEBYRANK', LEFT, 0, -LEFT_KEPT - 1)
call('PEXPIRE', LEFT, LEFT_KEPT_MS)
leave_place(has_left)
return 1
