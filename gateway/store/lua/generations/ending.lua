-- How generations end, and clients leave.
-- args of `finish_or_fail`  id, leader, retry_key, and
--        is_done, life_ms, keep_ms, cache_key, cache_ms, leaves; blob 1 is the result; or
--        has_error (else: hand over), doubtful, parts; blob 1 is the error, the parts follow

local function count_leader_out(one)
  if not one.is_leader_gone then one.clients = math.max(0, one.clients - 1) end
  one.is_leader_gone = true
end

-- Whether it led before, and was counted out when its successor took over.
local function was_former(one, request)
  for at, name in ipairs(one.former or {}) do
    if name == request then return table.remove(one.former, at) end
  end
  return nil
end

-- The store may have forgotten a follower, not the leader: it stays a client until it is gone.
local function leave_generation(one, request, retry_key, outcome)
  if one.leader == request then
    count_leader_out(one)
  elseif was_former(one, request) then
    if outcome == 'delivered' then return end -- of what it made itself
  else
    one.clients = math.max(one.is_leader_gone and 0 or 1, one.clients - 1)
  end
  if outcome == 'delivered' then
    one.presumed = ''
    if one.delivered == 0 then one.delivered = now_ms end
    score(retry_key, one, 0)
    return
  end
  if one.claimed == request then one.claimed = '' end
  if outcome == 'gone' and one.clients == 0 and one.delivered == 0 and one.state ~= 'failed'
    and not one.is_keyed then
    score(retry_key, one, UNCLAIMED)
  end
end

local function finish(one)
  one.state, one.ended, one.lease = 'done', now_ms, 0
  one.dies, one.kept = now_ms + args.life_ms, math.max(one.kept, now_ms + args.keep_ms)
  if args.cache_key then
    local name = named('c', args.cache_key)
    if call('HGET', name, 'running') == one.id then call('HDEL', name, 'running') end
    if args.cache_ms > 0 then
      one.cached = now_ms + args.cache_ms
      call('HSET', name, 'done', one.id)
      last(name, args.cache_ms)
    end
  end
  drop_parts(one)
  call('HSET', named('g', one.id), 'payload', blob(1))
  list_as_cached(one)
  unlist_expired(10)
end

-- Repeats of the request shall find parts and doubts, and nothing where there are none.
-- True if nothing is left of it.
local function fail(one, error, retry_key)
  one.state, one.ended, one.lease = 'failed', now_ms, 0
  one.is_doubtful = error and args.doubtful or false
  call('HSET', named('g', one.id), 'payload', error or '')
  if not error then count_leader_out(one) end
  if one.is_doubtful or (#one.parts > 0 and not one.is_keyed) then
    score(retry_key, one, UNCLAIMED)
  elseif retry_key and #one.parts == 0 then
    call('ZREM', named('a', retry_key), one.id)
  end
  if error or one.clients > 0 or #one.parts > 0 then return false end
  call('DEL', named('g', one.id))
  return true
end

local function finish_or_fail()
  local one, leader = open(args.id), args.leader
  if not args.is_done then
    if not one and not args.has_error and #args.parts == 0 then return 'kept' end -- nothing is lost
    if one and one.state ~= 'done' then keep_parts(one, leader, 2) end
  end
  local answer = fencing(one, leader)
  if not one or one.state == 'done' then return answer end
  if is_led_by(one, leader) then
    if args.is_done then
      finish(one)
      if args.leaves and not one.is_leader_gone then
        local is_first = one.delivered == 0
        leave_generation(one, leader, args.retry_key, 'delivered')
        one.presumed = is_first and leader or ''
      end
    elseif fail(one, args.has_error and blob(1) or nil, args.retry_key) then
      return answer
    end
  end
  save(one)
  return answer
end

-- args of `leave_place`  request, generation (nil: it has none), retry_key, outcome
local function leave_place(has_left)
  if args.generation then
    local one = open(args.generation)
    if not one then return end
    if one.presumed == args.request then -- its answer was taken for delivered
      one.presumed, one.delivered = '', 0
    elseif has_left and (one.leader ~= args.request or one.is_leader_gone) then
      return -- the generation has heard of it
    end
    leave_generation(one, args.request, args.retry_key, args.outcome)
    save(one)
  elseif not has_left then
    -- Nobody heard what place it was given: hand over what it leads, or adopted.
    local one = led_by(args.request)
    if one then
      if not fail(one, nil, args.retry_key) then save(one) end
      return
    end
    one = open(call('GET', named('t', args.request)))
    if one and one.claimed == args.request then
      leave_generation(one, args.request, args.retry_key, 'gone')
      save(one)
    end
  end
end
