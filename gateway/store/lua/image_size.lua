-- How long a kept image is.
-- KEYS  1 ends, 2 sizes, 3 the image
-- ARGV  1 milliseconds added to the server's time (tests only), 2 <id>:<index>
-- Reply bytes, 0 if it is not there

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[1])

local ends = redis.call('ZSCORE', KEYS[1], ARGV[2])
if not ends then return 0 end
local size = redis.call('STRLEN', KEYS[3])
if tonumber(ends) <= now_ms or size ~= tonumber(redis.call('HGET', KEYS[2], ARGV[2])) then
  redis.call('ZREM', KEYS[1], ARGV[2])
  redis.call('HDEL', KEYS[2], ARGV[2])
  redis.call('UNLINK', KEYS[3])
  return 0
end
return size
