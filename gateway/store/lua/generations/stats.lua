-- What the cache holds.
-- Reply entries, bytes, {how, times, ...}

unlist_expired(1000)
local entries, bytes = call('ZCARD', CACHED), 0
for _, size in ipairs(call('HVALS', BASE .. 'sizes')) do bytes = bytes + (tonumber(size) or 0) end
return {entries, bytes, call('HGETALL', BASE .. 'counts')}
