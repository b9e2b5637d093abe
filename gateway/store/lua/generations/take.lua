-- Take the place that was located, unless it has become dearer since.
-- args  price = {images, cost}, is_known
-- Reply as `take`, or changed

local choice = choose()
local images, cost = price_of(choice)
if images > args.price[1] or cost > args.price[2] then return {'changed'} end
return take(choice, args.is_known)
