-- Put back a running generation that was lost; what is found by the same keys stays where it is.
-- args  id, leader, plan, lead_ms, cache_key, key, body, retry_key, parts
-- Reply the fencing result

local one = open(args.id)
if not one then
  one = create(args.id, args.plan)
  one.leader, one.holder, one.clients, one.lease = args.leader, args.leader, 1, now_ms
  if not args.key or not by_key(args.key) then point(one, args) end
  call('DEL', named('g', one.id))
  save(one, 'payload', '')
  run_for_all(one, args.cache_key)
end
if one.state ~= 'done' then keep_parts(one, args.leader, 1) end
if is_led_by(one, args.leader) then one.lease = now_ms + args.lead_ms end
save(one)
return fencing(one, args.leader)
