-- Find a request its place and admit it, or refuse it and write nothing.
-- args  those of admission.lua and choose.lua, lease_ms, family
-- Reply allowed (0 or 1), reason, retry after ms (-1: not by waiting), `levels`, the place,
--       has left (0 or 1)

local known = booking_of(request)
if is_over(request, known) then return {1, '', -1, levels(), {'missing'}, 0} end
local choice = choose()
if choice.kind == 'conflict' or choice.kind == 'missing' then
  return {1, '', -1, levels(), {choice.kind}, 0}
end
local passed, at_once = has_passed(request, known), is_answered_at_once(choice)
if passed and at_once then -- the answer was lost
  return {1, '', -1, levels(), found_place(choice), 1}
end
local n, cost = price_of(choice)
local former = replaceable(not follows and former_of(choice) or nil, request)
local reason, retry_ms = obstacle(request, known, n, cost, former)
if reason then return {0, reason, retry_ms, levels(), {}, 0} end
if at_once and not known then
  admit_passing(request, args.family)
  count(choice.how)
  return {1, '', -1, levels(), found_place(choice), 1}
end
admit(request, n, cost, args.lease_ms, former)
local place = take(choice, known and not passed)
return {1, '', -1, levels(), place, 0}
