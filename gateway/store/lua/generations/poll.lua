-- What has become of generations.
-- args  ids
-- Reply state, payload, age ms of each

local function status(one)
  if not one then return 'missing', '', 0 end
  if is_led(one) then return 'running', '', 0 end
  local age_ms = now_ms - one.ended
  local payload = call('HGET', named('g', one.id), 'payload') or ''
  if one.state == 'done' and one.dies > now_ms then return 'done', payload, age_ms end
  if one.state == 'failed' and payload ~= '' and age_ms <= SHARED_ERROR_MS then
    return 'failed', payload, age_ms
  end
  return 'dead', '', 0
end

local statuses = {}
for _, id in ipairs(args.ids) do
  for _, value in ipairs({status(open(id))}) do statuses[#statuses + 1] = value end
end
return statuses
