-- What enter and admit share: whether a request's limits let it in.
-- args  limits = {requests, images per minute, concurrent, images per day, spend per month}, -1: none

local per_minute, images_per_minute, at_once, per_day, per_month = unpack(args.limits)

local function is_over_limit(booked, more, limit)
  return limit >= 0 and more > 0 and booked + more > limit
end

-- Whether nothing is left for a request to enter for.
local function is_over(id, known)
  if known then return known.is_settled == 1 end
  return is_gone(id)
end

-- The former attempt, if a retry may have its place. No more are without a place than may have
-- one, lest repeats of one request count as one.
local function replaceable(former, id)
  if not former or is_live(id) then return nil end
  local ends = tonumber(call('ZSCORE', LEASES, former))
  if not ends or ends <= now_ms then return nil end
  if at_once >= 0 and call('ZCARD', DETACHED) >= at_once then return nil end
  return former
end

-- The limit in the way, and for how long; -1: not by waiting.
local function obstacle(id, known, n, cost, former)
  if is_admitted(id, known, n, cost) then return nil end
  if is_over_limit(day_booked, n, per_day) then return 'images_per_day', -1 end
  if is_over_limit(month_booked, cost, per_month) then return 'spend_per_month', -1 end
  local requests_ms = known and 0 or room_in_ms('r', requests, 1, per_minute)
  local images_ms = room_in_ms('i', images, n, images_per_minute)
  if images_ms == -1 or (requests_ms ~= -1 and images_ms > requests_ms) then
    return 'images_per_minute', images_ms
  end
  if requests_ms ~= 0 then return 'requests_per_minute', requests_ms end
  if not former and at_once >= 0 and not is_live(id)
    and is_over_limit(concurrent(), 1, at_once) then
    return 'concurrent_requests', CONCURRENCY_RETRY_MS
  end
  return nil
end
