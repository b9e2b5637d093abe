-- One scope's generations, at the server's time. `memory/scope.py` and `places.py` say the same
-- in Python, and tests/contract hold them together.
--
-- KEYS[SCOPE_AT]  cached  zset: cached generation -> until when, ms
--      Further keys are those that the caller can name. The rest have names that begin with the
--      same hash tag, and are found on the way:
--        <base>sizes       hash: cached generation -> bytes
--        <base>counts      hash: how -> how often
--        <base>g:<id>      hash: a generation: head (MessagePack), payload, and
--                          p<index>, the URLs of a part (MessagePack)
--        <base>c:<key>     hash: running, done -> id; the generations of a cache key
--        <base>i:<key>     hash: id, body, until; an idempotency key
--        <base>a:<hash>    zset: the generations of a retry key -> when each began, ms, plus
--                          UNCLAIMED once nobody waits for it
--        <base>t:<request> the generation that a request has taken over
--        <base>left        zset: request that has left -> when, ms; of a group apart from its tenants

local CACHED = KEYS[SCOPE_AT]
local BASE = string.sub(CACHED, 1, -7)
local UNCLAIMED = 1125899906842624
local POINTERS_MS, COUNTS_MS = 7200000, 3456000000
local VERSION = 2

local function named(kind, name)
  return BASE .. kind .. ':' .. name
end

-- Let a key live at least so long.
local function last(key, ms)
  if call('PTTL', key) < ms then call('PEXPIRE', key, text(ms)) end
end

-- When all of a generation may be forgotten.
local function gone_at(one)
  if one.state == 'done' then
    return math.max(one.kept, one.pinned, math.min(one.cached, one.dies))
  end
  return math.max(one.lease, one.ended) + PARTS_KEPT_MS
end

-- nil for what is not there, not to be had any more, or not this version's.
local function open(id)
  if not id or id == '' then return nil end
  local one = unpacked(call('HGET', named('g', id), 'head'))
  if not one or one.v ~= VERSION then return nil end
  one.id = id
  return gone_at(one) > now_ms and one or nil
end

local function save(one, ...)
  local key, id = named('g', one.id), one.id
  one.id = nil
  call('HSET', key, 'head', cmsgpack.pack(one), ...)
  one.id = id
  call('PEXPIRE', key, text(math.max(gone_at(one) - now_ms, 0) + 1000))
end

local function create(id, plan)
  return {
    v = VERSION, id = id, state = 'running', leader = '', plan = plan, claimed = '', holder = '',
    parts = {}, begun = now_ms, lease = 0, clients = 0, is_leader_gone = false,
    is_doubtful = false, ended = 0, dies = 0, pinned = 0, cached = 0, kept = 0, delivered = 0,
    presumed = '', -- whose answer `end` took for delivered
    former = {}, -- leaders before, that are no clients any more but have yet to leave
    is_keyed = false, -- an idempotency key points to it: what nobody was given waits for that
  }
end

local function is_led(one)
  return one.state == 'running' and one.lease > now_ms
end

local function is_led_by(one, request)
  return one.state == 'running' and one.leader == request
end

local function fencing(one, leader)
  if not one then return 'missing' end
  return one.leader == leader and 'kept' or 'fenced'
end

-- What a request leads, if anything.
local function led_by(request)
  for _, id in ipairs({call('GET', named('t', request)) or request, request}) do
    local one = open(id)
    if one and is_led_by(one, request) then return one end
  end
  return nil
end

local function has_part(one, index)
  for _, other in ipairs(one.parts) do
    if other == index then return true end
  end
  return false
end

-- The leader's parts replace older ones; another's are taken where there are none.
-- args  parts, their indexes; the URLs of each (MessagePack) are blobs, from `first` on
local function keep_parts(one, leader, first)
  for at, index in ipairs(args.parts) do
    local urls = blob(first + at - 1)
    local is_known = has_part(one, index)
    if one.leader == leader or not is_known then
      call('HSET', named('g', one.id), 'p' .. index, urls)
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

local function score(retry_key, one, extra)
  if not retry_key then return end
  call('ZADD', named('a', retry_key), 'XX', text(one.begun + extra), one.id)
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

-- entry = {key, body, retry_key, cache_key, ...}; to be saved after it
local function point(one, entry)
  if entry.key then
    one.is_keyed, one.kept = true, math.max(one.kept, now_ms + IDEMPOTENCY_MS)
    score(entry.retry_key, one, 0)
    point_key(entry.key, entry.body, one.id)
  elseif entry.retry_key then
    local name = named('a', entry.retry_key)
    call('ZADD', name, text(one.begun), one.id)
    call('ZREMRANGEBYRANK', name, 0, -RETRIED_MAX - 1)
    call('PEXPIRE', name, POINTERS_MS)
  end
end

-- Others join it by the cache key, unless they are joining another already.
local function run_for_all(one, cache_key)
  if not cache_key then return end
  local name = named('c', cache_key)
  local other = open(call('HGET', name, 'running'))
  if not other or not is_led(other) then
    call('HSET', name, 'running', one.id)
    last(name, POINTERS_MS)
  end
end

-- For as long as the policy lets it be served, and it can be.
local function list_as_cached(one)
  local ends = math.min(one.cached, math.max(one.dies, one.pinned))
  if ends <= now_ms then return end
  call('ZADD', CACHED, text(ends), one.id)
  call('HSET', BASE .. 'sizes', one.id, call('HSTRLEN', named('g', one.id), 'payload'))
  last(CACHED, ends - now_ms)
  last(BASE .. 'sizes', ends - now_ms)
end

local function unlist(id)
  call('ZREM', CACHED, id)
  call('HDEL', BASE .. 'sizes', id)
end

local function unlist_expired(most)
  local ids = call('ZRANGEBYSCORE', CACHED, '-inf', text(now_ms), 'LIMIT', 0, most)
  for _, id in ipairs(ids) do unlist(id) end
  return #ids
end
