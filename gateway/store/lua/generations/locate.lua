-- Where a request would stand, and what that costs; nothing is written.
-- Reply kind, images, cost, former attempt ('': none)

local choice = choose()
local images, cost = price_of(choice)
return {choice.kind, images, cost, former_of(choice) or ''}
