-- Free a request's place, and note what became of its client; once. One that left by its end is
-- told of only where its answer was not delivered.
-- args  those of generations/ending.lua and limits/settle.lua
-- Reply `levels`

local id = args.request
local has_left = is_gone(id) and not booking_of(id)
settle(args.settlement)
leave(id)
leave_place(has_left)
return levels()
