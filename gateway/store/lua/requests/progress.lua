-- Keep what one upstream call has brought, and book it.
-- args  those of generations/parts.lua and limits/use.lua

use(args.settlement)
return progress()
