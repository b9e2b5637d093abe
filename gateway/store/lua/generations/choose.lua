-- What entering needs: where a request would stand (`choose` writes nothing), and taking that place.
-- `memory/places.py` says the same in Python.
-- args  request, plan, images, cost (of all of them), lead_ms, cache_key, max_age_ms, fresh,
--       only_if_cached, needs_url, is_retry, may_reuse_unclaimed, key, body (of an idempotency key),
--       retry_key, follows
--
-- A choice  kind = lead | led | joined | found | doubtful | conflict | missing, one, how

local request, follows = args.request, args.follows

local function is_doubt(one, how)
  if not one.is_doubtful or args.fresh or one.plan ~= args.plan then return false end
  local is_young = how == 'adopted' and now_ms - one.ended <= DOUBT_MS
  return is_young or args.is_retry or how == 'replayed'
end

-- How well a retry is served by a generation. nil: past that; 0: nobody waits for it.
local function rank(one, is_unclaimed)
  local is_done = one.state == 'done'
  local since, allowed_ms = one.ended, UNDELIVERED_REUSED_MS
  if one.delivered > 0 then since, allowed_ms = one.delivered, DELIVERED_REUSED_MS end
  if is_done and now_ms - since > allowed_ms then return nil end
  if is_unclaimed then return 0 end
  if one.delivered > 0 or one.claimed ~= '' then return 3 end
  return is_done and 2 or 1
end

-- Who wants something new, and is no retry, is still told of a doubt.
local function may_reuse(one)
  return args.is_retry or args.may_reuse_unclaimed or is_doubt(one, 'adopted')
end

local function adopt()
  if not args.retry_key or (args.fresh and not args.is_retry) then return nil end
  -- It has one already, if the answer to this very request was lost.
  local own = open(call('GET', named('t', request)))
  if own and own.claimed == request then return own end
  local name, least = named('a', args.retry_key), args.is_retry and '-inf' or text(UNCLAIMED)
  local members = call(
    'ZREVRANGEBYSCORE', name, '+inf', least, 'WITHSCORES', 'LIMIT', 0, CANDIDATES)
  local best, best_rank = nil, 9
  for index = 1, #members, 2 do
    local one = open(members[index])
    local its = one and rank(one, tonumber(members[index + 1]) >= UNCLAIMED)
    if not its then
      call('ZREM', name, members[index])
    elseif its < best_rank and may_reuse(one) then
      best, best_rank = one, its
    end
  end
  return best
end

-- In the order in which they are preferred, where all cost or none does.
local function candidates()
  local found = {}
  local function consider(one, how)
    if one then found[#found + 1] = {one = one, how = how} end
  end
  consider(open(follows), 'joined')
  if args.key then
    local one, body = by_key(args.key)
    if one and body ~= args.body then return nil end
    consider(one, 'replayed')
  elseif not follows then
    consider(adopt(), 'adopted')
  end
  if args.cache_key and not args.fresh then
    local ids = call('HMGET', named('c', args.cache_key), 'done', 'running')
    local done = open(ids[1])
    if done and done.cached > now_ms
      and (not args.max_age_ms or now_ms - done.ended <= args.max_age_ms) then
      consider(done, 'hit')
    end
    consider(open(ids[2]), 'joined')
  end
  return found
end

-- The kind, where a generation costs the request nothing.
local function free_kind(one)
  if is_led_by(one, request) then return 'led' end
  if is_led(one) and not args.only_if_cached then return 'joined' end
  if one.state == 'done' then
    local margin_ms = one.id == follows and 0 or MARGIN_MS
    if one.pinned > now_ms and not args.needs_url then return 'found' end
    if one.dies - margin_ms > now_ms then return 'found' end
  end
  return nil
end

local function choose()
  local own = led_by(request)
  if own then return {kind = 'led', one = own, how = 'joined'} end
  local found = candidates()
  if not found then return {kind = 'conflict'} end
  for _, candidate in ipairs(found) do
    candidate.kind = free_kind(candidate.one)
    if candidate.kind then return candidate end
  end
  if args.only_if_cached then return {kind = 'missing'} end
  for _, candidate in ipairs(found) do
    if candidate.one.state ~= 'done' then
      candidate.kind = is_doubt(candidate.one, candidate.how) and 'doubtful' or 'lead'
      return candidate
    end
  end
  return {kind = 'lead'}
end

-- Whether the answer is there, and so short that nobody is slow to read it: URLs from the cache.
local function is_answered_at_once(choice)
  return choice.kind == 'found' and choice.how == 'hit' and args.needs_url
    and not args.key and not follows
end

-- The earlier attempt of the same request, whose place of concurrency this one may have.
local function former_of(choice)
  if choice.how ~= 'replayed' and choice.how ~= 'adopted' then return nil end
  return choice.one.holder
end

-- What the place costs, in images and money: nothing where another pays, and only what is missing
-- where some images are paid for already. `Reservation.less` in store/limits.py says the same.
local function price_of(choice)
  if choice.kind ~= 'lead' and choice.kind ~= 'led' then return 0, 0 end
  local missing = args.images
  if choice.one and choice.one.plan == args.plan then
    local parts = parts_of(choice.one)
    for index = 2, #parts, 2 do missing = missing - #(unpacked(parts[index]) or {}) end
  end
  missing = math.max(0, missing)
  return missing, math.floor(args.cost * missing / math.max(1, args.images))
end

local function count(how)
  call('HINCRBY', BASE .. 'counts', how, 1)
  call('PEXPIRE', BASE .. 'counts', text(COUNTS_MS))
end

-- A generation that another pays for, or has paid for.
local function share(one, how, is_new)
  if is_new then
    count(how)
    one.clients = one.clients + 1
  end
  if how == 'replayed' or how == 'adopted' then one.holder = request end
  if how == 'adopted' then -- no other retry shall have it
    one.claimed = request
    score(args.retry_key, one, 0)
    call('SET', named('t', request), one.id, 'PX', text(args.lead_ms))
  end
  if one.state == 'running' or (args.key and how == 'hit') then point(one, args) end
  save(one)
end

local function led(one)
  return {'led', one.id, parts_of(one)}
end

-- A leader that died is a client no more.
local function lead(one)
  count('led')
  one = one or create(request, args.plan)
  local died = one.state == 'running' and one.leader ~= '' and not one.is_leader_gone
  if died then one.clients = one.clients - 1 end
  if (died or one.is_leader_gone) and one.leader ~= '' then
    one.former = one.former or {}
    one.former[#one.former + 1] = one.leader
    if #one.former > FORMER_MAX then table.remove(one.former, 1) end
  end
  one.clients = math.max(1, one.clients + (one.id ~= follows and 1 or 0))
  if one.plan ~= args.plan then
    drop_parts(one)
    one.plan = args.plan
  end
  one.leader, one.holder, one.state, one.lease = request, request, 'running', now_ms + args.lead_ms
  one.claimed, one.ended, one.is_doubtful, one.is_leader_gone = '', 0, false, false
  one.delivered, one.presumed = 0, ''
  if one.id ~= request then -- so that it is given the same again, if this answer is lost
    call('SET', named('t', request), one.id, 'PX', text(args.lead_ms))
  end
  point(one, args)
  save(one, 'payload', '')
  run_for_all(one, args.cache_key)
  return led(one)
end

local function found_place(choice)
  local one = choice.one
  local result = call('HGET', named('g', one.id), 'payload')
  return {'found', one.id, choice.how, now_ms - one.ended, result}
end

-- Write a choice down. `is_known`: the request has a place already.
-- Reply led, id, {part, URLs, ...} | joined, id, how | found, id, how, age ms, result
--       | doubtful, id, age ms, error | conflict | missing
local function take(choice, is_known)
  local kind, one, how = choice.kind, choice.one, choice.how
  if kind == 'conflict' or kind == 'missing' then return {kind} end
  if kind == 'lead' then return lead(one) end
  if kind == 'led' then return led(one) end
  if kind == 'doubtful' then
    return {kind, one.id, now_ms - one.ended, call('HGET', named('g', one.id), 'payload')}
  end
  share(one, how, one.id ~= follows and not (is_known and not follows))
  if kind == 'found' then return found_place(choice) end
  return {kind, one.id, how}
end
