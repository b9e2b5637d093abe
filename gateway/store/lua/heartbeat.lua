-- Count a worker as alive and tell it its place among the living.
-- KEYS  1 workers  zset: worker -> expiry, ms
-- args  worker, ttl_ms (0: sign off)
-- Reply place by name from 0, number of workers

call('ZADD', KEYS[1], text(now_ms + args.ttl_ms), args.worker)
call('ZREMRANGEBYSCORE', KEYS[1], '-inf', text(now_ms))
call('PEXPIRE', KEYS[1], math.max(args.ttl_ms, 60000))
local names = call('ZRANGE', KEYS[1], 0, -1)
table.sort(names)
for index, name in ipairs(names) do
  if name == args.worker then return {index - 1, #names} end
end
return {0, math.max(#names, 1)}
