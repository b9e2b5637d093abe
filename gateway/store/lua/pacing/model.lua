-- One model's slots, at the server's time. `memory/pacing.py` says the same in Python, and
-- tests/contract hold the two together.
--
-- KEYS  1 model  hash: a:<account> -> next slot, us; w:<worker> -> {expiry us, waiting, served};
--                order -> {virtual time, sequence, {tenant -> {tag, served}}} (MessagePack)

local MODEL = KEYS[1]
local FURTHEST_US = BACK_OFF_MAX_MS * 1000
local TTL_MS = BACK_OFF_MAX_MS + 60000

local function set_free(account, at_us)
  call('HSET', MODEL, 'a:' .. account, text(at_us))
  call('PEXPIRE', MODEL, TTL_MS)
end
