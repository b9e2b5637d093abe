-- Note what became of a client; once, as far as is remembered.

local LEFT = BASE .. 'left' -- zset: request that has left -> when, ms

if call('ZADD', LEFT, 'NX', text(now_ms), args.request) == 0 and not args.corrects then return 0 end
call('ZREMRANGEBYSCORE', LEFT, '-inf', text(now_ms - LEFT_KEPT_MS))
call('ZREMRANGEBYRANK', LEFT, 0, -LEFT_KEPT - 1)
call('PEXPIRE', LEFT, LEFT_KEPT_MS)
leave_place()
return 1
