-- One tenant's books, at the server's time. `memory/tenant.py` says the same in Python, and
-- tests/contract hold the two together. A request is live while its lease is, with or without a
-- place of concurrency. Once it has left, only its name is remembered; one that expired keeps its
-- booking, of which only what was used stays booked, and may come back.
--
-- KEYS  1 window        hash: requests, images, oldest, newest; r<second>, i<second> of the last minute
--       2 leases        zset: request with a place of concurrency -> expiry, ms
--       3 detached      zset: request whose place its retry has -> expiry, ms
--       4 reservations  hash: request -> booking (MessagePack, see BOOKING)
--       5 gone          zset: requests that have left or expired -> when, ms
--       6 day, 7 month  hash: name, booked; r:<family>, i:<family>, c:<family>
-- args  zone = {offset ms, until ms, offset after ms}

local WINDOW, LEASES, DETACHED, RESERVATIONS, GONE, DAY, MONTH = unpack(KEYS, 1, 7)
local SECONDS = 60
local WINDOW_TTL_MS = 62000
local KEPT_TTL_MS = 3456000000 -- 40 days: a dead worker's money comes back in the same month
local EXPIRED_AT_ONCE = 1000

-- The sliding minute.

local requests, images, oldest, newest
local second = math.floor(now_ms / 1000)

local function slide_window()
  local held = call('HMGET', WINDOW, 'requests', 'images', 'oldest', 'newest')
  requests, images, oldest = tonumber(held[1]) or 0, tonumber(held[2]) or 0, tonumber(held[3])
  newest = tonumber(held[4]) or 0
  if not oldest then return end
  -- The window's time does not go back, unless the clock was set back for good.
  if newest > second and newest <= second + SECONDS then second = newest end
  local first = second - SECONDS
  if newest < first or newest > second then
    call('DEL', WINDOW)
    requests, images, oldest, newest = 0, 0, nil, 0
  elseif oldest < first then
    local fields = {}
    for expired = oldest, first - 1 do
      fields[#fields + 1] = 'r' .. expired
      fields[#fields + 1] = 'i' .. expired
    end
    local counts = call('HMGET', WINDOW, unpack(fields))
    for index = 1, #counts, 2 do
      requests = requests - (tonumber(counts[index]) or 0)
      images = images - (tonumber(counts[index + 1]) or 0)
    end
    call('HDEL', WINDOW, unpack(fields))
    oldest = first
    call('HSET', WINDOW, 'requests', requests, 'images', images, 'oldest', oldest)
  end
end

local function book_images(at, amount)
  if amount == 0 or at < second - SECONDS or at > second then return end
  local field = 'i' .. at
  if amount < 0 then
    amount = math.max(amount, -(tonumber(call('HGET', WINDOW, field)) or 0))
    if amount == 0 then return end
  end
  images = images + amount
  oldest, newest = math.min(oldest or at, at), math.max(newest, at)
  call('HINCRBY', WINDOW, field, amount)
  call('HSET', WINDOW, 'images', images, 'oldest', oldest, 'newest', newest)
  call('PEXPIRE', WINDOW, WINDOW_TTL_MS)
end

local function book_request()
  requests = requests + 1
  oldest, newest = math.min(oldest or second, second), second
  call('HINCRBY', WINDOW, 'r' .. second, 1)
  call('HSET', WINDOW, 'requests', requests, 'oldest', oldest, 'newest', newest)
  call('PEXPIRE', WINDOW, WINDOW_TTL_MS)
end

local function unbook_request(at)
  if at < second - SECONDS or at > second
    or (tonumber(call('HGET', WINDOW, 'r' .. at)) or 0) == 0 then
    return
  end
  requests = requests - 1
  call('HINCRBY', WINDOW, 'r' .. at, -1)
  call('HSET', WINDOW, 'requests', requests)
end

local function leaves_ms(at)
  return (at + SECONDS + 1) * 1000 - now_ms
end

-- Non-empty buckets of one kind ('r' or 'i'), oldest first.
local function buckets(kind)
  local fields, found = {}, {}
  if not oldest then return found end
  for at = oldest, second do fields[#fields + 1] = kind .. at end
  for index, count in ipairs(call('HMGET', WINDOW, unpack(fields))) do
    count = tonumber(count) or 0
    if count > 0 then found[#found + 1] = {oldest + index - 1, count} end
  end
  return found
end

local function reset_ms(kind)
  local newest = call('HGET', WINDOW, kind .. second)
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

-- The calendar day and month. A server knows no time zones: it is given the offset now, when it
-- changes next, and the offset after that.

local function day_at(ms)
  local offset_ms = ms < args.zone[2] and args.zone[1] or args.zone[3]
  return math.floor((ms + offset_ms) / 86400000)
end

-- The time at which a day that is yet to come begins.
local function begins_ms(day)
  local local_ms, until_ms = day * 86400000, args.zone[2]
  if now_ms < until_ms then
    if local_ms - args.zone[1] < until_ms then return local_ms - args.zone[1] end
    return math.max(until_ms, local_ms - args.zone[3])
  end
  return local_ms - args.zone[3]
end

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
local today = day_at(now_ms)
local day, month, next_month = today, month_of(today)
local day_booked, month_booked

-- A period that began a moment ago is kept if the clock slips back before it.
local function open_period(key, name, following)
  local held = call('HMGET', key, 'name', 'booked')
  local known = tonumber(held[1])
  if known == name or known == following then return tonumber(held[2]) or 0, known end
  if held[1] or held[2] then call('DEL', key) end
  return 0, name
end

local function save_period(key, name, booked)
  call('HSET', key, 'name', name, 'booked', text(booked))
  call('PEXPIRE', key, KEPT_TTL_MS)
end

local function book_day(name, amount)
  if name ~= day or amount == 0 then return end
  day_booked = math.max(0, day_booked + amount)
  save_period(DAY, day, day_booked)
end

local function book_month(name, amount)
  if name ~= month or amount == 0 then return end
  month_booked = math.max(0, month_booked + amount)
  save_period(MONTH, month, month_booked)
end

local function count_use(family, more_requests, more_images, more_cost)
  for _, period in ipairs({DAY, MONTH}) do
    if more_requests > 0 then call('HINCRBY', period, 'r:' .. family, more_requests) end
    if more_images > 0 then call('HINCRBY', period, 'i:' .. family, text(more_images)) end
    if more_cost > 0 then call('HINCRBY', period, 'c:' .. family, text(more_cost)) end
  end
  save_period(DAY, day, day_booked)
  save_period(MONTH, month, month_booked)
end

-- Bookings.

local BOOKING = {
  'images', 'cost', 'used_images', 'used_cost', 'second', 'day', 'month', 'is_settled',
}
local COUNTED = 2 -- in `is_settled`: not settled, but the request is in its family's use already

local function booking_of(id, packed)
  local values = unpacked(packed or call('HGET', RESERVATIONS, id))
  if not values or #values ~= #BOOKING then return nil end
  local one = {}
  for index, field in ipairs(BOOKING) do one[field] = tonumber(values[index]) or 0 end
  return one
end

local function save_booking(id, one)
  local values = {}
  for index, field in ipairs(BOOKING) do values[index] = one[field] end
  call('HSET', RESERVATIONS, id, cmsgpack.pack(values))
  call('PEXPIRE', RESERVATIONS, KEPT_TTL_MS)
end

local function new_booking(n, cost)
  return {
    images = n, cost = cost, used_images = 0, used_cost = 0,
    second = second, day = day, month = month, is_settled = 0,
  }
end

-- Count more or less for a booking, where and when it was made.
local function correct(one, more_images, more_cost)
  book_images(one.second, more_images)
  book_day(one.day, more_images)
  book_month(one.month, more_cost)
end

-- Whether its request was admitted to pay for nothing.
local function is_free(one)
  return one.is_settled ~= 1 and one.images == 0 and one.cost == 0
end

local function is_live(id)
  return call('ZSCORE', LEASES, id) or call('ZSCORE', DETACHED, id)
end

-- Whether `admit_passing` counted it, and it holds nothing.
local function has_passed(id, known)
  return known and known.is_settled == COUNTED and is_free(known) and not is_live(id)
end

-- Whether a request has all that its place costs, its answer having been lost.
local function is_admitted(id, known, n, cost)
  return known and not has_passed(id, known) and not (is_free(known) and (n > 0 or cost > 0))
end

local function is_gone(id)
  return call('ZSCORE', GONE, id)
end

local function lease(id, lease_ms)
  local leases = call('ZSCORE', DETACHED, id) and DETACHED or LEASES
  call('ZADD', leases, text(now_ms + lease_ms), id)
  call('PEXPIRE', leases, KEPT_TTL_MS)
end

local function remember_gone(id)
  call('ZADD', GONE, text(now_ms), id)
  call('PEXPIRE', GONE, KEPT_TTL_MS)
  local stale = call('ZRANGEBYSCORE', GONE, '-inf', text(now_ms - LEFT_KEPT_MS - 1), 'LIMIT', 0, 100)
  local surplus = call('ZCARD', GONE) - #stale - LEFT_KEPT
  if surplus > 0 then stale = call('ZRANGE', GONE, 0, #stale + surplus - 1) end
  if #stale > 0 then
    call('ZREM', GONE, unpack(stale))
    call('HDEL', RESERVATIONS, unpack(stale))
  end
end

-- Reserve for a request that has been counted.
local function reserve(id, n, cost, lease_ms, known)
  local one = new_booking(n, cost)
  if known and known.is_settled == COUNTED then one.is_settled = COUNTED end
  save_booking(id, one)
  call('ZREM', GONE, id)
  lease(id, lease_ms)
  correct(one, n, cost)
end

-- Count a request that needs no place, since it is answered at once and does not leave. Where it
-- never hears of that, or cannot read it, it may yet be admitted, pay, and leave.
local function admit_passing(id, family)
  local one = new_booking(0, 0)
  one.is_settled = COUNTED
  book_request()
  count_use(family, 1, 0, 0)
  save_booking(id, one)
  remember_gone(id)
end

-- Book a request, unless it is booked; `former` gives up its place for it.
local function admit(id, n, cost, lease_ms, former)
  local known = booking_of(id)
  if is_admitted(id, known, n, cost) then return end
  if not known then book_request() end
  if former then
    call('ZADD', DETACHED, call('ZSCORE', LEASES, former), former)
    call('PEXPIRE', DETACHED, KEPT_TTL_MS)
    call('ZREM', LEASES, former)
  end
  reserve(id, n, cost, lease_ms, known)
end

-- Give back what dead workers reserved; the request itself and what it used stay.
local function expire_leases(leases)
  local expired = call('ZRANGEBYSCORE', leases, '-inf', text(now_ms), 'LIMIT', 0, EXPIRED_AT_ONCE)
  if #expired == 0 then return end
  local bookings = call('HMGET', RESERVATIONS, unpack(expired))
  call('ZREM', leases, unpack(expired))
  for index, id in ipairs(expired) do
    local one = bookings[index] and booking_of(id, bookings[index])
    if one then correct(one, one.used_images - one.images, one.used_cost - one.cost) end
    remember_gone(id)
  end
end

-- Use. What a settlement says is absolute, and never less than before.

-- nil: it has left. One that the store never saw was admitted elsewhere.
local function booking_to_use(id)
  local one = booking_of(id)
  if not one and not is_gone(id) then
    book_request()
    one = new_booking(0, 0)
    save_booking(id, one)
    remember_gone(id)
  end
  return one
end

local function raise_use(one, settlement)
  local more_images = math.max(0, settlement.images - one.used_images)
  local more_cost = math.max(0, settlement.cost - one.used_cost)
  local live = is_live(settlement.request)
  local booked_images = live and one.images or one.used_images
  local booked_cost = live and one.cost or one.used_cost
  one.used_images = one.used_images + more_images
  one.used_cost = one.used_cost + more_cost
  one.images = math.max(one.images, one.used_images)
  one.cost = math.max(one.cost, one.used_cost)
  correct(
    one, math.max(0, one.used_images - booked_images), math.max(0, one.used_cost - booked_cost))
  if more_images > 0 or more_cost > 0 then
    count_use(settlement.family, 0, more_images, more_cost)
  end
end

-- Note what of a reservation is used by now.
local function use(settlement)
  local one = booking_to_use(settlement.request)
  if one and one.is_settled ~= 1 then
    raise_use(one, settlement)
    save_booking(settlement.request, one)
  end
end

-- Give back what was not used; once.
local function settle(settlement)
  local id = settlement.request
  local one = booking_to_use(id)
  if not one or one.is_settled == 1 then return end
  raise_use(one, settlement)
  if is_live(id) then correct(one, one.used_images - one.images, one.used_cost - one.cost) end
  if one.is_settled ~= COUNTED then count_use(settlement.family, 1, 0, 0) end
  one.images, one.cost, one.is_settled = one.used_images, one.used_cost, 1
  save_booking(id, one)
end

-- Free a request's place, and remember that it has left.
local function leave(id)
  call('ZREM', LEASES, id)
  call('ZREM', DETACHED, id)
  call('HDEL', RESERVATIONS, id)
  remember_gone(id)
end

-- How many count as concurrent.
local function concurrent()
  return call('ZCOUNT', LEASES, '(' .. text(now_ms), '+inf')
end

-- Where every limit stands, as `redis/limits.py` reads it.
local function levels()
  return {
    requests, reset_ms('r'), images, reset_ms('i'), concurrent(),
    day_booked, begins_ms(day + 1) - now_ms, month_booked, begins_ms(next_month) - now_ms,
  }
end

local function begin_operation()
  slide_window()
  month_booked, month = open_period(MONTH, month, (month_of(today + 1)))
  day_booked, day = open_period(DAY, today, today + 1)
  expire_leases(LEASES)
  expire_leases(DETACHED)
end
begin_operation()
