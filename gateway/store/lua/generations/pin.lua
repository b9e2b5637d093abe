-- Every image's bytes are held, whatever becomes of the URLs.
-- args  id, pin_ms

local one = open(args.id)
if one and one.state == 'done' then
  one.pinned = now_ms + args.pin_ms
  save(one)
  list_as_cached(one)
end
return 1
