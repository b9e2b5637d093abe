-- A leader's client waits no longer; the generation goes on.
-- args  id, leader, retry_key

local one = open(args.id)
if one and is_led_by(one, args.leader) then
  leave_generation(one, args.leader, args.retry_key, 'gone')
  save(one)
end
return 1
