-- Keep an image that was sent in blocks, if it is whole and fits; those that end first make room.
-- KEYS  1 ends   zset: <id>:<index> -> until when, ms
--       2 sizes  hash: <id>:<index> -> bytes
--       3 the blocks; images are named after them: <base>b:<id>:<index>
-- args  member (<id>:<index>), size (bytes), ttl_ms, budget (bytes)
-- Reply 1 kept, 0 not

local ENDS, SIZES, BLOCKS = unpack(KEYS)
local BASE = string.sub(ENDS, 1, -5)
local member, size, ttl_ms, budget = args.member, args.size, args.ttl_ms, args.budget

if call('STRLEN', BLOCKS) ~= size or size > budget then
  call('DEL', BLOCKS)
  return 0
end

local function drop(one)
  call('ZREM', ENDS, one)
  call('HDEL', SIZES, one)
  call('UNLINK', BASE .. 'b:' .. one)
end

drop(member)
for _, one in ipairs(call('ZRANGEBYSCORE', ENDS, '-inf', text(now_ms))) do
  drop(one)
end
local total = size
for _, one in ipairs(call('HVALS', SIZES)) do total = total + (tonumber(one) or 0) end
while total > budget do
  local first = call('ZRANGE', ENDS, 0, 0)[1]
  if not first then break end
  total = total - tonumber(call('HGET', SIZES, first) or 0)
  drop(first)
end
call('RENAME', BLOCKS, BASE .. 'b:' .. member)
call('PEXPIRE', BASE .. 'b:' .. member, ttl_ms)
call('ZADD', ENDS, text(now_ms + ttl_ms), member)
call('HSET', SIZES, member, size)
for _, key in ipairs({ENDS, SIZES}) do
  if call('PTTL', key) < ttl_ms then call('PEXPIRE', key, ttl_ms) end
end
return 1
