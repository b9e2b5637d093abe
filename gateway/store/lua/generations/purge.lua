-- Serve nothing of the cache any more; called again until nothing is left.
-- args  most, how many at once
-- Reply how many were purged, how many may be left

local expired = unlist_expired(args.most)
local purged = 0
for _, id in ipairs(call('ZRANGE', CACHED, 0, args.most - 1)) do
  local one = open(id)
  if one then
    purged = purged + 1
    one.cached, one.pinned = 0, 0
    if one.kept > now_ms then save(one) else call('DEL', named('g', id)) end
  end
  unlist(id)
end
return {purged, expired + call('ZCARD', CACHED)}
