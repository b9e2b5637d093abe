-- Forget a result that cannot be used.
-- args  id

local one = open(args.id)
if one and one.state == 'done' then
  call('DEL', named('g', one.id))
  unlist(one.id)
end
return 1
