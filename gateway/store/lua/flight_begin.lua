-- Find a result, or whoever is working on it, or else lead.
-- ARGV  2 request, 3 plan, 4 lease ms, 5 cache key, 6 max age ms (-1: any), 7 flags: fresh,
--       only if cached, needs URL, is retry, takes orphans (0 or 1 each), 8 idempotency key,
--       9 its body, 10 adoption, 11 follows; '' for none
-- Reply led, id, {part, value, ...} | joined, id, how | found, id, how, age ms, result
--       | conflict | missing

local request, plan, lease_ms, cache_key = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local max_age_ms, key, body, adoption = tonumber(ARGV[6]), ARGV[8], ARGV[9], ARGV[10]
local follows = ARGV[11]
local function flag(index)
  return string.sub(ARGV[7], index, index) == '1'
end
local fresh, only_if_cached, needs_url, is_retry, takes_orphans =
  flag(1), flag(2), flag(3), flag(4), flag(5)

local function count(how)
  call('HINCRBY', BASE .. 'counts', how, 1)
  call('PEXPIRE', BASE .. 'counts', text(COUNTS_MS))
end

local function led(one)
  return {'led', one.id, parts_of(one)}
end

-- Finding.

-- How well a retry is served by a generation. nil: past adoption; 0: nobody waits for it.
local function rank(one, is_orphan)
  local is_done = one.phase == 'done'
  local since, allowed_ms = one.ended, UNDELIVERED_ADOPTED_MS
  if one.delivered > 0 then since, allowed_ms = one.delivered, DELIVERED_ADOPTED_MS end
  if is_done and now_ms - since > allowed_ms then return nil end
  if one.claimed == request then return -1 end
  if is_orphan then return 0 end
  if one.delivered > 0 or one.claimed ~= '' then return 3 end
  return is_done and 2 or 1
end

-- Whether an answered error explains a retry; each explains one.
local function is_excused()
  local name = named('x', adoption)
  call('ZREMRANGEBYSCORE', name, '-inf', text(now_ms - EXCUSE_MS))
  return #call('ZPOPMIN', name) > 0
end

local function adopt()
  if adoption == '' or not (is_retry or (takes_orphans and not fresh)) then return nil end
  local name, least = named('a', adoption), is_retry and '-inf' or text(ORPHAN)
  local members = call(
    'ZREVRANGEBYSCORE', name, '+inf', least, 'WITHSCORES', 'LIMIT', 0, CANDIDATES)
  local best, best_rank = nil, 9
  for index = 1, #members, 2 do
    local one = open(members[index])
    local its = one and rank(one, tonumber(members[index + 1]) >= ORPHAN)
    if not its then
      call('ZREM', name, members[index])
    elseif its < best_rank then
      best, best_rank = one, its
    end
  end
  if is_retry and best_rank > 0 and is_excused() then return nil end
  return best
end

local candidates = {}
local function consider(one, how)
  if one then candidates[#candidates + 1] = {one, how} end
end

local function is_cached(one)
  return one.cached > now_ms and (max_age_ms < 0 or now_ms - one.ended <= max_age_ms)
end

-- Answering.

local function claim(one)
  if one.claimed ~= request then one.clients = one.clients + 1 end
  one.claimed = request
  score(adoption, one, 0)
end

local function joined(one, how)
  if one.id ~= follows then count(how) end
  if how == 'adopted' then
    claim(one)
  elseif one.id ~= follows then
    one.clients = one.clients + 1
  end
  save(one)
  point(one, key, body, adoption)
  return {'joined', one.id, how}
end

local function found(one, how)
  count(how)
  if how == 'adopted' then
    claim(one)
    save(one)
  elseif how == 'hit' and key ~= '' then
    point_key(key, body, one.id)
  end
  local result = call('HGET', named('g', one.id), 'payload')
  return {'found', one.id, how, now_ms - one.ended, result}
end

-- The answer, where this generation costs the request nothing.
local function free(one, how)
  if is_led_by(one, request) then return led(one) end
  if is_led(one) and not only_if_cached then return joined(one, how) end
  if one.phase == 'done' then
    local margin_ms = one.id == follows and 0 or MARGIN_MS
    if (one.held > now_ms and not needs_url) or one.dies - margin_ms > now_ms then
      return found(one, how)
    end
  end
  return nil
end

local function lead(one)
  count('led')
  one = one or create(request, plan)
  local others = one.phase == 'running' and one.clients - 1 or 0
  one.clients = math.max(1, others + (one.id ~= follows and 1 or 0))
  if one.plan ~= plan then
    drop_parts(one)
    one.plan = plan
  end
  one.leader, one.phase, one.lease = request, 'running', now_ms + lease_ms
  one.claimed, one.ended = '', 0
  if one.id ~= request then -- so that it is given the same again, if this answer is lost
    call('SET', named('t', request), one.id, 'PX', text(lease_ms))
  end
  save(one, 'payload', '')
  point(one, key, body, adoption)
  run_for_all(one, cache_key)
  return led(one)
end

local own = open(call('GET', named('t', request)) or request)
if own and is_led_by(own, request) then return led(own) end

consider(open(follows), 'joined')
if key ~= '' then
  local one, its_body = by_key(key)
  if one and its_body ~= body then return {'conflict'} end
  consider(one, 'replayed')
elseif follows == '' then
  consider(adopt(), 'adopted')
end
if cache_key ~= '' and not fresh then
  local slot = call('HMGET', named('c', cache_key), 'done', 'running')
  local done = open(slot[1])
  if done and is_cached(done) then consider(done, 'hit') end
  consider(open(slot[2]), 'joined')
end

for _, candidate in ipairs(candidates) do
  local answer = free(candidate[1], candidate[2])
  if answer then return answer end
end
if only_if_cached then return {'missing'} end
for _, candidate in ipairs(candidates) do
  if candidate[1].phase ~= 'done' then return lead(candidate[1]) end
end
return lead(nil)
