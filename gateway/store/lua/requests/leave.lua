-- Free a request's place, and note what became of its client; once.
-- args  those of generations/ending.lua and limits/settle.lua
-- Reply `levels`

local id = args.request
local has_left = is_gone(id) and not booking_of(id)
settle(args.settlement)
leave(id)
if not has_left or args.corrects then leave_place() end
return levels()
