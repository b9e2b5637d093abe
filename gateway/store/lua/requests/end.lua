-- End a generation, and settle its leader's reservation.
-- args  those of generations/ending.lua and limits/settle.lua
-- Reply the fencing result, `levels`

local answer = finish_or_fail()
settle(args.settlement)
return {answer, levels()}
