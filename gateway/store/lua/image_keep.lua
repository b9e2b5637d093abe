-- Keep an image that was sent in blocks, if it is whole and fits; those that end first make room.
-- KEYS  1 ends   zset: <id>:<index> -> until when, ms
--       2 sizes  hash: <id>:<index> -> bytes
--       3 the blocks; images are named after them: <base>b:<id>:<index>
-- ARGV  1 milliseconds added to the server's time (tests only), 2 <id>:<index>, 3 bytes, 4 ttl ms,
--       5 budget, bytes
-- Reply 1 kept, 0 not

local ENDS, SIZES, BLOCKS = unpack(KEYS)
local BASE = string.sub(ENDS, 1, -5)
local member, size, ttl_ms, budget = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[1])

if redis.call('STRLEN', BLOCKS) ~= size or size > budget then
  redis.call('DEL', BLOCKS)
  return 0
end

local function drop(one)
  redis.call('ZREM', ENDS, one)
  redis.call('HDEL', SIZES, one)
  redis.call('UNLINK', BASE .. 'b:' .. one)
end

drop(member)
for _, one in ipairs(redis.call('ZRANGEBYSCORE', ENDS, '-inf', string.format('%.0f', now_ms))) do
  drop(one)
end
local total = size
for _, one in ipairs(redis.call('HVALS', SIZES)) do total = total + (tonumber(one) or 0) end
while total > budget do
  local first = redis.call('ZRANGE', ENDS, 0, 0)[1]
  total = total - tonumber(redis.call('HGET', SIZES, first) or 0)
  drop(first)
end
redis.call('RENAME', BLOCKS, BASE .. 'b:' .. member)
redis.call('PEXPIRE', BASE .. 'b:' .. member, ttl_ms)
redis.call('ZADD', ENDS, string.format('%.0f', now_ms + ttl_ms), member)
redis.call('HSET', SIZES, member, size)
for _, key in ipairs({ENDS, SIZES}) do
  if redis.call('PTTL', key) < ttl_ms then redis.call('PEXPIRE', key, ttl_ms) end
end
return 1
