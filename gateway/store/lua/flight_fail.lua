-- A generation came to nothing, or to a part of it.
-- ARGV  2 id, 3 leader, 4 error ('': somebody else takes over), 5 adoption ('': none),
--       6 answered (0 or 1), then part, value of each

local leader, adoption = ARGV[3], ARGV[5]

local one = open(ARGV[2])
if one and one.phase ~= 'done' then
  keep_parts(one, leader, 7)
  if is_led_by(one, leader) then
    one.phase, one.ended, one.lease = 'failed', now_ms, 0
    call('HSET', named('g', one.id), 'payload', ARGV[4])
    leave_parts(one, adoption)
    if ARGV[6] == '1' and adoption ~= '' and #one.parts == 0 then excuse(adoption, leader) end
  end
  save(one)
end
return standing(one, leader)
