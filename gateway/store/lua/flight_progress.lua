-- Keep what upstream calls have brought so far.
-- ARGV  2 id, 3 leader, then part, value of each

local one = open(ARGV[2])
if one and one.phase ~= 'done' then
  keep_parts(one, ARGV[3], 4)
  save(one)
end
return standing(one, ARGV[3])
