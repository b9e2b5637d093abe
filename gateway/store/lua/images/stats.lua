-- What is kept of a scope's images, or all of it removed.
-- KEYS  1 ends, 2 sizes
-- args  remove
-- Reply images, bytes

local BASE = string.sub(KEYS[1], 1, -5)
local images, bytes = 0, 0
local members = call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for index = 1, #members, 2 do
  if tonumber(members[index + 1]) > now_ms then
    images = images + 1
    bytes = bytes + tonumber(call('HGET', KEYS[2], members[index]) or 0)
  end
  if args.remove then call('UNLINK', BASE .. 'b:' .. members[index]) end
end
if args.remove then call('DEL', KEYS[1], KEYS[2]) end
return {images, bytes}
