-- Take back a booking, or a part of it, that turned out not to be needed.
-- args  request, images, cost (what is needed; without them the request was never here)

local id = args.request
local one = booking_of(id)
if one and one.is_settled ~= 1 and is_live(id) then
  local images, cost = args.images or 0, args.cost or 0
  correct(one, images - one.images, cost - one.cost)
  one.images, one.cost = images, cost
  save_booking(id, one)
  if not args.images then
    unbook_request(one.second)
    call('ZREM', LEASES, id)
    call('ZREM', DETACHED, id)
    call('HDEL', RESERVATIONS, id)
  end
end
return levels()
