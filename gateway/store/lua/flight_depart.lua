-- A client's wait is over.
-- ARGV  2 id, 3 its request, 4 adoption ('': none), 5 delivered | let_go

local one = open(ARGV[2])
if not one then return 0 end
if ARGV[5] == 'delivered' then
  if one.delivered == 0 then one.delivered = now_ms end
  score(ARGV[4], one, 0)
else
  one.clients = math.max(0, one.clients - 1)
  if one.claimed == ARGV[3] then one.claimed = '' end
  if one.clients == 0 and one.delivered == 0 and one.phase ~= 'failed' then
    score(ARGV[4], one, ORPHAN)
  end
end
save(one)
return 1
