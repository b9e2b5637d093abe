-- Every image's bytes are held, whatever becomes of the URLs.
-- ARGV  2 id, 3 ms from now

local one = open(ARGV[2])
if one and one.phase == 'done' then
  one.held = now_ms + tonumber(ARGV[3])
  save(one)
  on_the_shelf(one)
end
return 1
