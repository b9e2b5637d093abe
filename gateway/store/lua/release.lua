-- Settle a request: free its lease, give back what it did not use, count what it did.
-- ARGV  2 reservation, 3 model, 4 images, 5 cost
-- Reply `levels`

local id, model, used, cost = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])

local function settle()
  local booking = redis.call('HGET', RESERVATIONS, id)
  if booking then
    booking = parse(booking)
    redis.call('HDEL', RESERVATIONS, id)
  else
    if redis.call('ZSCORE', GONE, id) then return end
    book_request()
    booking = {images = 0, cost = 0, second = second, day = day, month = month}
  end
  if redis.call('ZREM', LEASES, id) == 0 then
    -- Expired or never seen: nothing is booked that could be given back.
    booking.images, booking.cost = 0, 0
  end
  correct(booking, used - booking.images, cost - booking.cost)
  for _, period in ipairs({DAY, MONTH}) do
    redis.call('HINCRBY', period, 'r:' .. model, 1)
    redis.call('HINCRBY', period, 'i:' .. model, used)
    redis.call('HINCRBY', period, 'c:' .. model, cost)
  end
  bury(id)
end

drop_expired()
open_periods()
settle()
expire_leases()
return levels()
