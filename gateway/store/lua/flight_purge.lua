-- Serve nothing of the cache any more; called again until nothing is left.
-- ARGV  2 how many at once
-- Reply how many were purged, how many may be left

local expired = drop_expired(tonumber(ARGV[2]))
local ids = call('ZRANGE', KEYS[1], 0, tonumber(ARGV[2]) - 1)
local purged = 0
for _, id in ipairs(ids) do
  local one = open(id)
  if one then
    purged = purged + 1
    one.cached, one.held = 0, 0
    if one.kept > now_ms then save(one) else call('DEL', named('g', id)) end
  end
  off_the_shelf(id)
end
return {purged, expired + call('ZCARD', KEYS[1])}
