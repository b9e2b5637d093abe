-- What is kept of a scope's images, or all of it removed.
-- KEYS  1 ends, 2 sizes
-- ARGV  1 milliseconds added to the server's time (tests only), 2 remove (0 or 1)
-- Reply images, bytes

local BASE = string.sub(KEYS[1], 1, -5)
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[1])

local images, bytes = 0, 0
local members = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for index = 1, #members, 2 do
  if tonumber(members[index + 1]) > now_ms then
    images = images + 1
    bytes = bytes + tonumber(redis.call('HGET', KEYS[2], members[index]) or 0)
  end
  if ARGV[2] == '1' then redis.call('UNLINK', BASE .. 'b:' .. members[index]) end
end
if ARGV[2] == '1' then redis.call('DEL', KEYS[1], KEYS[2]) end
return {images, bytes}
