-- Keep leaderships alive.
-- ARGV  2 lease ms, then id, leader of each
-- Reply the standing of each

local standings = {}
for index = 3, #ARGV, 2 do
  local one, leader = open(ARGV[index]), ARGV[index + 1]
  if one and is_led_by(one, leader) then
    one.lease = now_ms + tonumber(ARGV[2])
    save(one)
  end
  standings[#standings + 1] = standing(one, leader)
end
return standings
