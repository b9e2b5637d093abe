-- What every script begins with. Constants from Python stand before it, as `local NAME = value`.
--
-- KEYS     as the files that follow say
-- ARGV[1]  Unix time in microseconds (tests only); 0: the server's own
-- ARGV[2]  the arguments by name, in MessagePack; None is nil
-- ARGV[3]… bytes, which this MessagePack does not know: `blob`

local now_us = tonumber(ARGV[1])
if now_us == 0 then
  local time = redis.call('TIME')
  now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local now_ms = math.floor(now_us / 1000)
local args = cmsgpack.unpack(ARGV[2])

local function blob(number)
  return ARGV[2 + number]
end

local function text(number)
  return string.format('%.0f', number)
end

-- A key that holds something else is not this gateway's: it is taken out of the way.
local function call(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  local is_foreign = string.find(reply.err, 'WRONGTYPE', 1, true)
    or string.find(reply.err, 'not an integer', 1, true)
  if not is_foreign then error(reply.err) end
  redis.call('DEL', key)
  return redis.call(command, key, ...)
end

-- What was packed, if it is a table.
local function unpacked(packed)
  if not packed then return nil end
  local is_read, value = pcall(cmsgpack.unpack, packed)
  return is_read and type(value) == 'table' and value or nil
end
