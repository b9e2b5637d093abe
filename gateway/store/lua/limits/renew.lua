-- Keep requests alive; book again what was given back or lost, and what they pay for only now.
-- args  lease_ms, reservations = {{request, images, cost}, ...}

local function renew(id, n, cost)
  local one = booking_of(id)
  if not one then
    if not is_gone(id) then admit(id, n, cost, args.lease_ms) end
  elseif is_free(one) and (n > 0 or cost > 0) then
    reserve(id, n, cost, args.lease_ms, one)
  else
    if not is_live(id) then
      call('ZREM', GONE, id)
      if one.is_settled ~= 1 then
        one.images, one.cost = math.max(one.images, n), math.max(one.cost, cost)
      end
      correct(one, one.images - one.used_images, one.cost - one.used_cost)
      save_booking(id, one)
    end
    lease(id, args.lease_ms)
  end
end

for _, reservation in ipairs(args.reservations) do renew(unpack(reservation)) end
return 1
