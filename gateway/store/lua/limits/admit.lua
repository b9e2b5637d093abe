-- Admit a request whose generation lives in another cluster slot, at the price that was found there.
-- args  request, images, cost, lease_ms, former (whose place it may have), limits
-- Reply allowed (1, 0; -1: it has left), reason, retry after ms, known before (0 or 1), `levels`

local id, known = args.request, booking_of(args.request)
if is_over(id, known) then return {-1, '', -1, 0, levels()} end
local former = replaceable(args.former, id)
local reason, retry_ms = obstacle(id, known, args.images, args.cost, former)
if reason then return {0, reason, retry_ms, 0, levels()} end
admit(id, args.images, args.cost, args.lease_ms, former)
return {1, '', -1, known and 1 or 0, levels()}
