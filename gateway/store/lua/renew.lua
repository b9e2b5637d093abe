-- Keep requests alive; book again what was given back or lost, and what they pay for only now.
-- What was settled stays settled.
-- ARGV  2 lease ms, then reservation, images, cost of each

local lease_ms = tonumber(ARGV[2])

drop_expired()
open_periods()

for index = 3, #ARGV, 3 do
  local id = ARGV[index]
  local n, cost = tonumber(ARGV[index + 1]), tonumber(ARGV[index + 2])
  local booking = redis.call('HGET', RESERVATIONS, id)
  if grows(booking, n, cost) then
    hold(id, n, cost, lease_ms)
  elseif redis.call('ZSCORE', LEASES, id) then
    lease(id, lease_ms)
  elseif booking then
    booking = parse(booking)
    redis.call('ZREM', GONE, id)
    lease(id, lease_ms)
    correct(booking, booking.images, booking.cost)
  elseif not redis.call('ZSCORE', GONE, id) then
    book(id, n, cost, lease_ms)
  end
end
return 1
