-- End a generation, and settle its leader's reservation; free its place, too, if it leaves.
-- args  those of generations/ending.lua and limits/settle.lua
-- Reply the fencing result, `levels`

local answer = finish_or_fail()
settle(args.settlement)
if args.leaves then leave(args.settlement.request) end
return {answer, levels()}
