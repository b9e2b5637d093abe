-- Settle a request, and free its place if it leaves.
-- args  settlement = {request, family, images, cost}, leaves
-- Reply `levels`

settle(args.settlement)
if args.leaves then leave(args.settlement.request) end
return levels()
