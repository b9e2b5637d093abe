-- Forget a result that cannot be used.
-- ARGV  2 id

local one = open(ARGV[2])
if one and one.phase == 'done' then
  call('DEL', named('g', one.id))
  off_the_shelf(one.id)
end
return 1
