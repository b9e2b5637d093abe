-- What claim, back_off and give_back share: one model's slots, at the server's time.
-- store/memory/pace.py says the same in Python; tests/contract hold the two together.
--
-- KEYS     1 model  hash: a:<account> -> next slot, us; w:<worker> -> {expiry us, waiting, served};
--                   order -> {virtual time, sequence, {tenant -> {tag, served}}} (MessagePack)
-- ARGV[1]  microseconds added to the server's time (tests only)

local MODEL = KEYS[1]
local FURTHEST_US = 3600000000
local TTL_MS = 3660000

local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2]) + tonumber(ARGV[1])

local function set_free(account, at_us)
  redis.call('HSET', MODEL, 'a:' .. account, string.format('%.0f', at_us))
  redis.call('PEXPIRE', MODEL, TTL_MS)
end
