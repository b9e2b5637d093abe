-- Keep leaderships alive.
-- args  lead_ms, leaderships = {{id, leader}, ...}
-- Reply the fencing result of each

local results = {}
for index, leadership in ipairs(args.leaderships) do
  local id, leader = unpack(leadership)
  local one = open(id)
  if one and is_led_by(one, leader) then
    one.lease = now_ms + args.lead_ms
    save(one)
  end
  results[index] = fencing(one, leader)
end
return results
