-- Admit a request against all limits at once, or refuse it and leave no trace.
-- ARGV  2 reservation, 3 images, 4 cost, 5 lease ms, 6-10 the limits in the order of
--       base.Limits (-1: none)
-- Reply allowed, reason, retry after ms (-1: not by waiting), then `levels`

local id, n, cost = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local per_minute, images_per_minute = tonumber(ARGV[6]), tonumber(ARGV[7])
local concurrent, per_day, per_month = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])

drop_expired()
open_periods()
expire_leases()

local function over(booked, more, limit)
  return limit >= 0 and more > 0 and booked + more > limit
end

local is_live = redis.call('ZSCORE', LEASES, id)

local function obstacle(is_counted)
  if over(day_booked, n, per_day) then return 'images_per_day', -1 end
  if over(month_booked, cost, per_month) then return 'spend_per_month', -1 end
  local requests_ms = is_counted and 0 or room_in_ms('r', requests, 1, per_minute)
  local images_ms = room_in_ms('i', images, n, images_per_minute)
  if images_ms == -1 or (requests_ms ~= -1 and images_ms > requests_ms) then
    return 'images_per_minute', images_ms
  end
  if requests_ms ~= 0 then return 'requests_per_minute', requests_ms end
  if concurrent >= 0 and not is_live then
    local live = redis.call('ZCOUNT', LEASES, '(' .. string.format('%.0f', now_ms), '+inf')
    if over(live, 1, concurrent) then return 'concurrent_requests', 1000 end
  end
  return nil
end

local reason, retry_ms
if grows(redis.call('HGET', RESERVATIONS, id), n, cost) then
  reason, retry_ms = obstacle(true)
  if not reason then hold(id, n, cost, tonumber(ARGV[5])) end
elseif not is_live and not redis.call('ZSCORE', GONE, id) then
  -- Else it is repeated, its answer having been lost, or comes after its own release.
  reason, retry_ms = obstacle(false)
  if not reason then book(id, n, cost, tonumber(ARGV[5])) end
end
return {reason and 0 or 1, reason or '', retry_ms or -1, unpack(levels())}
