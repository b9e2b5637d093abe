-- Count a worker as alive and tell it its place among the living.
-- KEYS 1 workers  zset: worker -> expiry, ms
-- ARGV 1 milliseconds added to the server's time (tests only), 2 worker, 3 ttl ms (0: sign off)
-- Reply place by name from 0, number of workers

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[1])
local ttl_ms = tonumber(ARGV[3])

redis.call('ZADD', KEYS[1], now_ms + ttl_ms, ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms)
redis.call('PEXPIRE', KEYS[1], math.max(ttl_ms, 60000))
local names = redis.call('ZRANGE', KEYS[1], 0, -1)
table.sort(names)
for index, name in ipairs(names) do
  if name == ARGV[2] then return {index - 1, #names} end
end
return {0, math.max(#names, 1)}
