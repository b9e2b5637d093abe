-- Put back a running generation that was lost; what is found by the same keys stays where it is.
-- ARGV  2 id, 3 leader, 4 plan, 5 lease ms, 6 cache key, 7 idempotency key, 8 its body,
--       9 adoption; '' for none; then part, value of each

local leader, key = ARGV[3], ARGV[7]

local one = open(ARGV[2])
if not one then
  one = create(ARGV[2], ARGV[4])
  one.leader, one.clients, one.lease = leader, 1, now_ms
  if key == '' or not by_key(key) then point(one, key, ARGV[8], ARGV[9]) end
  call('DEL', named('g', one.id))
  save(one, 'payload', '')
  run_for_all(one, ARGV[6])
end
if one.phase ~= 'done' then keep_parts(one, leader, 10) end
if is_led_by(one, leader) then one.lease = now_ms + tonumber(ARGV[5]) end
save(one)
return standing(one, leader)
