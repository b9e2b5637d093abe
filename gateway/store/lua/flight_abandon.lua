-- Give up before anything was sent, unless somebody follows.
-- ARGV  2 id, 3 leader, 4 adoption ('': none)
-- Reply 1 given up, 0 somebody waits

local one = open(ARGV[2])
if not one or not is_led_by(one, ARGV[3]) then return 1 end
if one.clients > 1 then return 0 end
one.phase, one.ended, one.lease = 'failed', now_ms, 0
leave_parts(one, ARGV[4])
if #one.parts > 0 then
  save(one, 'payload', '')
else
  call('DEL', named('g', one.id))
end
return 1
