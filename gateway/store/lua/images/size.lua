-- How long a kept image is.
-- KEYS  1 ends, 2 sizes, 3 the image
-- args  member (<id>:<index>)
-- Reply bytes, 0 if it is not there

local ends = call('ZSCORE', KEYS[1], args.member)
if not ends then return 0 end
local size = call('STRLEN', KEYS[3])
if tonumber(ends) <= now_ms or size ~= tonumber(call('HGET', KEYS[2], args.member)) then
  call('ZREM', KEYS[1], args.member)
  call('HDEL', KEYS[2], args.member)
  call('UNLINK', KEYS[3])
  return 0
end
return size
