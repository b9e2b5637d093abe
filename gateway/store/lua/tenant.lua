-- What take, renew, release and usage share: one tenant's state, at the server's time.
-- store/memory/limits.py says the same in Python; tests/contract hold the two together.
--
-- KEYS     1 window        hash: requests, images, oldest, newest; r<second>, i<second> of the last minute
--          2 leases        zset: reservation -> expiry, ms
--          3 reservations  hash: reservation -> images:cost:second:day:month
--          4 gone          zset: settled and expired reservations -> when, ms
--          5 day, 6 month  hash: name, booked; r:<model>, i:<model>, c:<model>
-- ARGV[1]  milliseconds added to the server's time (tests only)

local WINDOW, LEASES, RESERVATIONS, GONE, DAY, MONTH = unpack(KEYS)
local SECONDS = 60
local WINDOW_TTL_MS = 62000
local KEPT_TTL_MS = 3456000000 -- 40 days: a dead worker's money comes back in the same month
local GONE_MAX, GONE_MS = 10000, 900000

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[1])
local second = math.floor(now_ms / 1000)
local day = math.floor(second / 86400)

-- The month of a day number (year * 100 + month) and the day number on which the next one begins:
-- the inverse of days_from_civil, in which the year starts in March.
local function month_of(days)
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524)
    - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local begins = math.floor((153 * mp + 2) / 5)
  local ends = math.floor((153 * (mp + 1) + 2) / 5)
  local year, number = yoe + era * 400, mp + 3
  if number > 12 then year, number = year + 1, number - 12 end
  if number == 2 then
    local leap = (year % 4 == 0 and year % 100 ~= 0) or year % 400 == 0
    ends = begins + (leap and 29 or 28)
  end
  return year * 100 + number, days - doy + ends
end
local month, next_month = month_of(day)

-- The sliding minute.

local requests, images, oldest

local function drop_expired()
  local held = redis.call('HMGET', WINDOW, 'requests', 'images', 'oldest', 'newest')
  requests, images, oldest = tonumber(held[1]) or 0, tonumber(held[2]) or 0, tonumber(held[3])
  if not oldest then return end
  -- The window's time does not go back, unless the clock was set back for good.
  local newest = tonumber(held[4]) or 0
  if newest > second and newest <= second + SECONDS then second = newest end
  local first = second - SECONDS
  if oldest + SECONDS < first or newest > second then
    redis.call('DEL', WINDOW)
    requests, images, oldest = 0, 0, nil
  elseif oldest < first then
    local fields = {}
    for expired = oldest, first - 1 do
      fields[#fields + 1] = 'r' .. expired
      fields[#fields + 1] = 'i' .. expired
    end
    local counts = redis.call('HMGET', WINDOW, unpack(fields))
    for index = 1, #counts, 2 do
      requests = requests - (tonumber(counts[index]) or 0)
      images = images - (tonumber(counts[index + 1]) or 0)
    end
    redis.call('HDEL', WINDOW, unpack(fields))
    oldest = first
    redis.call('HSET', WINDOW, 'requests', requests, 'images', images, 'oldest', oldest)
  end
end

local function book_images(at, amount)
  if amount == 0 or at < second - SECONDS then return end
  local field = 'i' .. at
  if amount < 0 then
    amount = math.max(amount, -(tonumber(redis.call('HGET', WINDOW, field)) or 0))
    if amount == 0 then return end
  end
  images = images + amount
  redis.call('HINCRBY', WINDOW, field, amount)
  redis.call('HSET', WINDOW, 'images', images, 'oldest', math.min(oldest or at, at))
  oldest = math.min(oldest or at, at)
  redis.call('PEXPIRE', WINDOW, WINDOW_TTL_MS)
end

local function book_request()
  requests = requests + 1
  oldest = math.min(oldest or second, second)
  redis.call('HINCRBY', WINDOW, 'r' .. second, 1)
  redis.call('HSET', WINDOW, 'requests', requests, 'oldest', oldest, 'newest', second)
  redis.call('PEXPIRE', WINDOW, WINDOW_TTL_MS)
end

local function leaves_ms(at)
  return (at + SECONDS + 1) * 1000 - now_ms
end

-- Non-empty buckets of one kind ('r' or 'i'), oldest first.
local function buckets(kind)
  local fields, found = {}, {}
  if not oldest then return found end
  for at = oldest, second do fields[#fields + 1] = kind .. at end
  for index, count in ipairs(redis.call('HMGET', WINDOW, unpack(fields))) do
    count = tonumber(count) or 0
    if count > 0 then found[#found + 1] = {oldest + index - 1, count} end
  end
  return found
end

local function reset_ms(kind)
  local newest = redis.call('HGET', WINDOW, kind .. second)
  if newest and newest ~= '0' then return leaves_ms(second) end
  local found = buckets(kind)
  return #found > 0 and leaves_ms(found[#found][1]) or 0
end

-- Milliseconds until there is room: 0 for now, -1 for never.
local function room_in_ms(kind, total, amount, limit)
  local excess = total + amount - limit
  if limit < 0 or excess <= 0 then return 0 end
  if amount > limit then return -1 end
  for _, bucket in ipairs(buckets(kind)) do
    excess = excess - bucket[2]
    if excess <= 0 then return leaves_ms(bucket[1]) end
  end
  return leaves_ms(second)
end

-- The calendar day and month.

local day_booked, month_booked

-- A period that began a moment ago is kept if the clock slips back before it.
local function open_period(key, name, following)
  local held = redis.call('HMGET', key, 'name', 'booked')
  local known = tonumber(held[1])
  if known == name or known == following then return tonumber(held[2]), known end
  redis.call('DEL', key)
  redis.call('HSET', key, 'name', name, 'booked', 0)
  redis.call('PEXPIRE', key, KEPT_TTL_MS)
  return 0, name
end

local function open_periods()
  month_booked, month = open_period(MONTH, month, (month_of(day + 1)))
  day_booked, day = open_period(DAY, day, day + 1)
end

local function book_day(name, amount)
  if name ~= day or amount == 0 then return end
  day_booked = math.max(0, day_booked + amount)
  redis.call('HSET', DAY, 'booked', string.format('%.0f', day_booked))
end

local function book_month(name, amount)
  if name ~= month or amount == 0 then return end
  month_booked = math.max(0, month_booked + amount)
  redis.call('HSET', MONTH, 'booked', string.format('%.0f', month_booked))
end

-- Reservations.

local function parse(booking)
  local n, cost, at, d, m = string.match(booking, '^(%-?%d+):(%-?%d+):(%d+):(%d+):(%d+)$')
  return {
    images = tonumber(n), cost = tonumber(cost), second = tonumber(at),
    day = tonumber(d), month = tonumber(m),
  }
end

local function correct(booking, more_images, more_cost)
  book_images(booking.second, more_images)
  book_day(booking.day, more_images)
  book_month(booking.month, more_cost)
end

local function lease(id, lease_ms)
  redis.call('ZADD', LEASES, now_ms + lease_ms, id)
  redis.call('PEXPIRE', LEASES, KEPT_TTL_MS)
end

-- Reserve for a request that has been counted.
local function hold(id, n, cost, lease_ms)
  local record = string.format('%.0f:%.0f:%.0f:%.0f:%.0f', n, cost, second, day, month)
  redis.call('HSET', RESERVATIONS, id, record)
  redis.call('PEXPIRE', RESERVATIONS, KEPT_TTL_MS)
  redis.call('ZREM', GONE, id)
  lease(id, lease_ms)
  correct(parse(record), n, cost)
end

local function book(id, n, cost, lease_ms)
  book_request()
  hold(id, n, cost, lease_ms)
end

-- Whether a request that was admitted to pay for nothing is to pay now.
local function grows(booking, n, cost)
  return booking and string.match(booking, '^0:0:') and (n > 0 or cost > 0)
end

local function bury(id)
  redis.call('ZADD', GONE, now_ms, id)
  redis.call('PEXPIRE', GONE, KEPT_TTL_MS)
  local stale = redis.call('ZRANGEBYSCORE', GONE, '-inf', now_ms - GONE_MS - 1, 'LIMIT', 0, 100)
  local surplus = redis.call('ZCARD', GONE) - #stale - GONE_MAX
  if surplus > 0 then
    stale = redis.call('ZRANGE', GONE, 0, #stale + surplus - 1)
  end
  if #stale > 0 then
    redis.call('ZREM', GONE, unpack(stale))
    redis.call('HDEL', RESERVATIONS, unpack(stale))
  end
end

-- Give back what dead workers hold: images and money, not the request itself.
local function expire_leases()
  local expired = redis.call('ZRANGEBYSCORE', LEASES, '-inf', now_ms, 'LIMIT', 0, 1000)
  if #expired == 0 then return end
  local bookings = redis.call('HMGET', RESERVATIONS, unpack(expired))
  redis.call('ZREM', LEASES, unpack(expired))
  for index, id in ipairs(expired) do
    if bookings[index] then
      local booking = parse(bookings[index])
      correct(booking, -booking.images, -booking.cost)
    end
    bury(id)
  end
end

-- Where every limit stands, as store/redis reads it.
local function levels()
  return {
    requests, reset_ms('r'), images, reset_ms('i'),
    redis.call('ZCOUNT', LEASES, '(' .. string.format('%.0f', now_ms), '+inf'),
    day_booked, (day + 1) * 86400000 - now_ms, month_booked, next_month * 86400000 - now_ms,
  }
end
