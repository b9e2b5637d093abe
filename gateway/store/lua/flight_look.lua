-- What has become of generations.
-- ARGV  2… ids
-- Reply phase, payload, age ms of each

local function sight(one)
  if not one then return 'missing', '', 0 end
  if is_led(one) then return 'running', '', 0 end
  local age_ms = now_ms - one.ended
  local payload = call('HGET', named('g', one.id), 'payload') or ''
  if one.phase == 'done' and one.dies > now_ms then return 'done', payload, age_ms end
  if one.phase == 'failed' and payload ~= '' and age_ms <= SHARED_ERROR_MS then
    return 'failed', payload, age_ms
  end
  return 'dead', '', 0
end

local sights = {}
for index = 2, #ARGV do
  for _, value in ipairs({sight(open(ARGV[index]))}) do sights[#sights + 1] = value end
end
return sights
