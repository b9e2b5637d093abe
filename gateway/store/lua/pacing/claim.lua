-- Take the next slot of a model if it is due and it is this worker's turn.
-- args  worker, accounts = {{name, interval us, floor us}, ...}, waiting = {{tenant, calls}, ...},
--       report
-- Reply tenant, account, slot us ('' and 0 without a grant), now us, wait us, virtual time,
--       {account, free us, ...}, {tenant, worker, waiting, tag, served, ...}

local worker = args.worker
local lead_us = LEAD_US

local virtual_time, sequence, tags, workers, slots = 0, 0, {}, {}, {}
local held = call('HGETALL', MODEL)
for index = 1, #held, 2 do
  local field, value = held[index], held[index + 1]
  local kind, name = string.sub(field, 1, 2), string.sub(field, 3)
  if field == 'order' then
    virtual_time, sequence, tags = unpack(cmsgpack.unpack(value))
  elseif kind == 'a:' then
    slots[name] = tonumber(value)
  else
    workers[name] = cmsgpack.unpack(value)
  end
end

-- Take note of the caller's queue and forget dead workers.
local accounts, waiting = {}, {}
for index, account in ipairs(args.accounts) do
  local name, interval_us, floor_us = unpack(account)
  -- Nothing is further away, unless the clock was set back.
  local free_us = math.min(slots[name] or 0, now_us + FURTHEST_US)
  free_us = math.max(free_us, floor_us > 0 and now_us + floor_us or 0)
  accounts[index] = {name = name, interval_us = interval_us, free_us = free_us}
end
for _, share in ipairs(args.waiting) do waiting[share[1]] = share[2] end
local is_waiting = #args.waiting > 0
local served = {}
if workers[worker] then
  for tenant, at in pairs(workers[worker][3]) do
    if waiting[tenant] then served[tenant] = at end
  end
end
workers[worker] = is_waiting and {now_us + WAITING_TTL_MS * 1000, waiting, served} or nil
for name, other in pairs(workers) do
  if other[1] <= now_us then
    workers[name] = nil
    call('HDEL', MODEL, 'w:' .. name)
  end
end
if not is_waiting or #accounts == 0 then
  call('HDEL', MODEL, 'w:' .. worker)
  return {'', '', 0, now_us, 0, 0, {}, {}}
end

local function tag_of(tenant)
  local tag = tags[tenant]
  if tag and tag[1] >= virtual_time then return tag[1], tag[2] end
  return virtual_time, 0
end

local function precedes(one, other)
  for index = 1, #one do
    if one[index] ~= other[index] then return one[index] < other[index] end
  end
  return false
end

-- Tag and last service of the tenant whose turn is first, its own service there, names.
local function best_place(name)
  local best
  for tenant in pairs(workers[name][2]) do
    local tag, last = tag_of(tenant)
    local place = {tag, last, tenant, workers[name][3][tenant] or 0, name}
    if not best or precedes(place, best) then best = place end
  end
  return best
end

local account = accounts[1]
for _, other in ipairs(accounts) do
  if other.free_us < account.free_us then account = other end
end
local place, before_me = best_place(worker), 0
for name in pairs(workers) do
  if name ~= worker and precedes(best_place(name), place) then before_me = before_me + 1 end
end
lead_us = math.min(lead_us, math.floor(account.interval_us / 10))
local opens_us = account.free_us + before_me * GRACE_US - lead_us
local granted, granted_account, slot_us = '', '', 0

if now_us >= opens_us then
  local tag, tenant = place[1], place[3]
  granted, granted_account, slot_us = tenant, account.name, math.max(account.free_us, now_us)
  account.free_us = slot_us + account.interval_us
  set_free(account.name, account.free_us)

  sequence, virtual_time = sequence + 1, tag
  local ahead = {}
  for name, other in pairs(tags) do
    if other[1] >= tag then ahead[name] = other end
  end
  ahead[tenant] = {tag + 1, sequence}
  tags = ahead
  call('HSET', MODEL, 'order', cmsgpack.pack({virtual_time, sequence, tags}))

  served[tenant] = sequence
  waiting[tenant] = waiting[tenant] - 1
  if waiting[tenant] == 0 then waiting[tenant], served[tenant] = nil, nil end
  opens_us = account.free_us
  for _, other in ipairs(accounts) do opens_us = math.min(opens_us, other.free_us) end
  opens_us = opens_us - lead_us
end
if next(waiting) then
  call('HSET', MODEL, 'w:' .. worker, cmsgpack.pack(workers[worker]))
  call('PEXPIRE', MODEL, TTL_MS)
else
  call('HDEL', MODEL, 'w:' .. worker)
  workers[worker] = nil
end

local free, shares = {}, {}
for _, other in ipairs(accounts) do
  free[#free + 1] = other.name
  free[#free + 1] = other.free_us - now_us
end
if args.report then
  for name, other in pairs(workers) do
    for tenant, calls in pairs(other[2]) do
      local tag, last = tag_of(tenant)
      for _, value in ipairs({tenant, name, calls, tag, last}) do shares[#shares + 1] = value end
    end
  end
end
return {
  granted, granted_account, slot_us, now_us, math.max(0, opens_us - now_us), virtual_time, free, shares,
}
