-- A generation came to nothing, or to a part of it.
-- ARGV  2 id, 3 leader, 4 error ('': somebody else takes over), 5 adoption ('': none),
--       6 answered (0 or 1), then part, value of each

local leader, adoption = ARGV[3], ARGV[5]

local one = open(ARGV[2])
if one and one.phase ~= 'done' then keep_parts(one, leader, 7) end
if one and is_led_by(one, leader) then
  one.phase, one.ended, one.lease = 'failed', now_ms, 0
  save(one, 'payload', ARGV[4])
  local has_parts = leave_parts(one, adoption)
  if ARGV[6] == '1' and adoption ~= '' and not has_parts then excuse(adoption, leader) end
end
return standing(one, leader)
