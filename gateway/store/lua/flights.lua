-- What the operations on generations share: one scope's generations, at the server's time.
-- store/memory/flights.py and pointers.py say the same in Python; tests/contract hold them together.
--
-- KEYS     1 shelf; further ones are those that the caller can name. The rest have names that begin
--          with the same hash tag, and are found on the way:
--            <base>shelf     zset: cached generation -> until when, ms
--            <base>sizes     hash: cached generation -> bytes
--            <base>counts    hash: how -> how often
--            <base>g:<id>    hash: a generation: head (MessagePack), payload, and
--                            p<index>, the URLs of a part (MessagePack)
--            <base>c:<key>   hash: running, done -> id; the generations of a cache key
--            <base>i:<key>   hash: id, body, until; an idempotency key
--            <base>a:<hash>  zset: id -> when it began, ms, plus ORPHAN once nobody waits for it
--            <base>x:<hash>  zset: request answered by an error -> when, ms
--            <base>t:<request>  the generation that a request has taken over
-- ARGV[1]  milliseconds added to the server's time (tests only)

local BASE = string.sub(KEYS[1], 1, -6)
local ORPHAN = 1125899906842624
local CANDIDATES, ADOPTABLE_MAX = 16, 64
local MARGIN_MS, PARTS_KEPT_MS, SHARED_ERROR_MS, EXCUSE_MS = 60000, 600000, 15000, 60000
local DELIVERED_ADOPTED_MS, UNDELIVERED_ADOPTED_MS = 60000, 600000
local IDEMPOTENCY_MS, POINTERS_MS, COUNTS_MS = 86400000, 7200000, 3456000000

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[1])

-- A key that holds something else is not this gateway's: it is taken out of the way.
local function call(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  local is_foreign = string.find(reply.err, 'WRONGTYPE', 1, true)
    or string.find(reply.err, 'not an integer', 1, true)
  if not is_foreign then error(reply.err) end
  redis.call('DEL', key)
  return redis.call(command, key, ...)
end

local VERSION = 1

local function named(kind, name)
  return BASE .. kind .. ':' .. name
end

local function text(number)
  return string.format('%.0f', number)
end

-- Let a key live at least so long.
local function last(key, ms)
  if call('PTTL', key) < ms then call('PEXPIRE', key, text(ms)) end
end

-- When all of a generation may be forgotten.
local function gone(one)
  if one.phase == 'done' then
    return math.max(one.kept, one.held, math.min(one.cached, one.dies))
  end
  return math.max(one.lease, one.ended) + PARTS_KEPT_MS
end

-- nil for what is not there, not to be had any more, or not this version's.
local function open(id)
  if not id or id == '' then return nil end
  local head = call('HGET', named('g', id), 'head')
  if not head then return nil end
  local is_read, one = pcall(cmsgpack.unpack, head)
  if not is_read or type(one) ~= 'table' or one.v ~= VERSION then return nil end
  one.id = id
  return gone(one) > now_ms and one or nil
end

local function save(one, ...)
  local key, id = named('g', one.id), one.id
  one.id = nil
  call('HSET', key, 'head', cmsgpack.pack(one), ...)
  one.id = id
  call('PEXPIRE', key, text(math.max(gone(one) - now_ms, 0) + 1000))
end

local function create(id, plan)
  return {
    v = VERSION, id = id, phase = 'running', leader = '', plan = plan, claimed = '', parts = {},
    begun = now_ms, lease = 0, clients = 0, ended = 0, dies = 0, held = 0, cached = 0, kept = 0,
    delivered = 0,
  }
end

local function is_led(one)
  return one.phase == 'running' and one.lease > now_ms
end

local function is_led_by(one, request)
  return one.phase == 'running' and one.leader == request
end

local function standing(one, leader)
  if not one then return 'missing' end
  return one.leader == leader and 'kept' or 'fenced'
end

local function has_part(one, index)
  for _, other in ipairs(one.parts) do
    if other == index then return true end
  end
  return false
end

-- The leader's parts replace older ones; another's are taken where there are none.
local function keep_parts(one, leader, first)
  for at = first, #ARGV, 2 do
    local index = tonumber(ARGV[at])
    local is_known = has_part(one, index)
    if one.leader == leader or not is_known then
      call('HSET', named('g', one.id), 'p' .. index, ARGV[at + 1])
    end
    if not is_known then one.parts[#one.parts + 1] = index end
  end
end

local function drop_parts(one)
  for _, index in ipairs(one.parts) do call('HDEL', named('g', one.id), 'p' .. index) end
  one.parts = {}
end

local function parts_of(one)
  local parts = {}
  for _, index in ipairs(one.parts) do
    parts[#parts + 1] = index
    parts[#parts + 1] = call('HGET', named('g', one.id), 'p' .. index) or ''
  end
  return parts
end

local function score(adoption, one, extra)
  if adoption == '' then return end
  call('ZADD', named('a', adoption), 'XX', text(one.begun + extra), one.id)
end

local function point_key(key, body, id)
  local name = named('i', key)
  call('HSET', name, 'id', id, 'body', body, 'until', text(now_ms + IDEMPOTENCY_MS))
  call('PEXPIRE', name, IDEMPOTENCY_MS)
end

local function by_key(key)
  local held = call('HMGET', named('i', key), 'id', 'body', 'until')
  if not held[1] or (tonumber(held[3]) or 0) <= now_ms then return nil end
  return open(held[1]), held[2]
end

local function point(one, key, body, adoption)
  if key ~= '' then
    point_key(key, body, one.id)
  elseif adoption ~= '' then
    local name = named('a', adoption)
    call('ZADD', name, text(one.begun), one.id)
    call('ZREMRANGEBYRANK', name, 0, -ADOPTABLE_MAX - 1)
    call('PEXPIRE', name, POINTERS_MS)
  end
end

-- Others join it by the cache key, unless they are joining another already.
local function run_for_all(one, cache_key)
  if cache_key == '' then return end
  local name = named('c', cache_key)
  local other = open(call('HGET', name, 'running'))
  if not other or not is_led(other) then
    call('HSET', name, 'running', one.id)
    last(name, POINTERS_MS)
  end
end

local function excuse(adoption, request)
  local name = named('x', adoption)
  call('ZADD', name, text(now_ms), request)
  call('PEXPIRE', name, EXCUSE_MS)
end

-- A retry shall find the parts, and nothing where there are none.
local function leave_parts(one, adoption)
  if #one.parts > 0 then
    score(adoption, one, ORPHAN)
  elseif adoption ~= '' then
    call('ZREM', named('a', adoption), one.id)
  end
end

-- For as long as the policy lets it be served, and it can be.
local function on_the_shelf(one)
  local ends = math.min(one.cached, math.max(one.dies, one.held))
  if ends <= now_ms then return end
  call('ZADD', KEYS[1], text(ends), one.id)
  call('HSET', BASE .. 'sizes', one.id, call('HSTRLEN', named('g', one.id), 'payload'))
  last(KEYS[1], ends - now_ms)
  last(BASE .. 'sizes', ends - now_ms)
end

local function off_the_shelf(id)
  call('ZREM', KEYS[1], id)
  call('HDEL', BASE .. 'sizes', id)
end

local function drop_expired(most)
  local ids = call('ZRANGEBYSCORE', KEYS[1], '-inf', text(now_ms), 'LIMIT', 0, most)
  for _, id in ipairs(ids) do off_the_shelf(id) end
  return #ids
end
