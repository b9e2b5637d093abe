-- Note what of a reservation is used by now.
-- args  settlement = {request, family, images, cost}

use(args.settlement)
return 1
