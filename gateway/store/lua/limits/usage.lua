-- Reply `levels`, then the fields of the day and of the month

local function fields(key, name)
  local held = call('HGETALL', key)
  return call('HGET', key, 'name') == tostring(name) and held or {}
end
return {levels(), fields(DAY, day), fields(MONTH, month)}
